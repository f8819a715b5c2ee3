"use strict";
// The list of edits with its filters, and the drawer in which one edit is looked at and taken back.
const shown = { edits: [], next: null, older: [], open: null };

const factOf = (edit) => (edit.prompt ? edit.prompt.replace("{}", edit.subject ?? "") : edit.id);

function filters() {
  const chosen = new URLSearchParams();
  for (const [name, value] of new FormData($("filter"))) if (value.trim()) chosen.set(name, value.trim());
  return chosen;
}

async function listEdits() {
  const chosen = filters();
  chosen.set("limit", "20");
  const page = await call("GET", `/v1/edits?${chosen}`);
  shown.edits = page.edits;
  if (!shown.older.length) shown.next = page.next;
  else shown.older = shown.older.filter((edit) => !page.edits.length || edit.number < page.edits.at(-1).number);
  showEdits();
}

function marks(edit) {
  const box = make("span");
  box.append(make("span", edit.state, `pill ${edit.state}`));
  if (edit.outcome) box.append(" ", make("span", edit.outcome, `pill ${edit.outcome}`));
  return box;
}

function editRow(edit) {
  const row = make("tr"), fact = make("td", undefined, "fact"), state = make("td"), act = make("td");
  fact.append(make("div", edit.target_new ? `${factOf(edit)} → ${edit.target_new}` : factOf(edit)));
  const note = [edit.id, edit.relation, edit.provenance && edit.provenance.who, edit.reason].filter(Boolean).join(" · ");
  fact.append(make("small", note));
  state.append(marks(edit));
  if (edit.applied_in) state.append(make("div", `in v${edit.applied_in}`, "mono"));
  const open = button("History", () => attempt(() => openEdit(edit.id)), "small plain");
  open.setAttribute("aria-label", `History of ${factOf(edit)}`);
  act.append(open);
  row.append(fact, state, make("td", when(edit.accepted_at), "mono"), act);
  return row;
}

function showEdits() {
  const rows = shown.edits.concat(shown.older);
  const focused = document.activeElement?.getAttribute("aria-label");
  $("edits").replaceChildren(...rows.map(editRow));
  if (focused) [...$("edits").querySelectorAll("button")].find((one) => one.getAttribute("aria-label") === focused)?.focus();
  $("no-edits").hidden = rows.length > 0;
  $("more-edits").hidden = shown.next === null;
}

function listed(title, pairs) {
  const box = make("section"), list = make("dl", undefined, "pairs");
  box.append(make("h3", title));
  for (const [name, value] of pairs) {
    const cell = make("dd");
    cell.append(value instanceof Node ? value : told(value));
    list.append(make("dt", name), cell);
  }
  box.append(list);
  return box;
}

const editLink = (id) => button(id, () => attempt(() => openEdit(id)), "link");

function links(ids) {
  const box = make("span");
  for (const id of ids) box.append(editLink(id), " ");
  return box;
}

async function openEdit(id) {
  const edit = await call("GET", `/v1/edits/${encodeURIComponent(id)}`);
  shown.open = edit;
  $("drawer-title").textContent = edit.target_new ? `${factOf(edit)} → ${edit.target_new}` : edit.id;
  const about = [["id", edit.id], ["state", marks(edit)], ["accepted", when(edit.accepted_at)]];
  for (const [name, value] of [["reason", edit.reason], ["relation", edit.relation], ["statement", edit.statement], ["before", edit.target_true]]) {
    if (value) about.push([name, value]);
  }
  for (const [name, value] of Object.entries(edit.provenance || {})) if (value) about.push([name, value]);
  if (edit.applied_in) about.push(["written in", `v${edit.applied_in}`]);
  if (edit.ended_in) about.push(["taken out in", `v${edit.ended_in}`]);
  if (edit.supersedes && edit.supersedes.length) about.push(["superseded", links(edit.supersedes)]);
  if (edit.superseded_by) about.push(["superseded by", editLink(edit.superseded_by)]);
  const parts = [listed("The edit", about)];
  const figures = Object.entries({ ...(edit.result || {}), ...(edit.figures || {}) }).filter(([, value]) => typeof value !== "object");
  if (figures.length) parts.push(listed(edit.outcome ? `How it ${edit.outcome === "weak" ? "is weak" : "landed"}` : "Figures", figures));
  const history = make("section"), steps = make("ol", undefined, "history");
  history.append(make("h3", "History"), steps);
  for (const fate of edit.fates) {
    const text = [when(fate.at), fate.state, fate.sequence ? `v${fate.sequence}` : "", fate.reason].filter(Boolean).join(" · ");
    steps.append(make("li", text));
  }
  parts.push(history);
  const asked = [["paraphrases", edit.paraphrases], ["neighborhood", edit.neighborhood], ["portability", edit.portability]]
    .filter(([, list]) => list && list.length).map(([name, list]) => [name, list.map((one) => one.prompt || one).join("; ")]);
  if (asked.length) parts.push(listed("Questions about it", asked));
  $("drawer-body").replaceChildren(...parts);
  const may = allowed("write") && (edit.state === "applied" || edit.state === "waiting");
  $("revert-form").hidden = !may;
  $("revert-go").textContent = edit.state === "waiting" ? "Withdraw" : "Revert";
  if (!$("drawer").open) $("drawer").showModal();
}

$("drawer-close").addEventListener("click", () => $("drawer").close());
$("revert-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const reason = $("revert-reason").value.trim();
  attempt(async () => {
    $("revert-go").disabled = true;
    try {
      const path = `/v1/edits/${encodeURIComponent(shown.open.id)}${reason ? `?reason=${encodeURIComponent(reason)}` : ""}`;
      const done = await call("DELETE", path);
      if (done.state === "reverting") notice("It is taken back after the batch under way.");
      $("revert-reason").value = "";
      $("drawer").close();
    } catch (error) {
      $("drawer").close(); // the notice is behind it
      throw error;
    } finally {
      $("revert-go").disabled = false;
    }
    await refresh();
  });
});
$("edit-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target, edit = {};
  for (const name of ["subject", "prompt", "target_new"]) edit[name] = form.elements[name].value;
  if (form.elements.relation.value) edit.relation = form.elements.relation.value;
  if (form.elements.why.value) edit.provenance = { why: form.elements.why.value, source: "page" };
  attempt(async () => {
    await call("POST", "/v1/edits", edit);
    form.reset();
    await refresh();
  });
});
$("filter").addEventListener("submit", (event) => {
  event.preventDefault();
  shown.older = [];
  attempt(listEdits);
});
$("filter").addEventListener("reset", () => { shown.older = []; window.setTimeout(() => attempt(listEdits)); });
$("more-edits").addEventListener("click", () => attempt(async () => {
  const chosen = filters();
  chosen.set("limit", "50");
  chosen.set("before", shown.next);
  const page = await call("GET", `/v1/edits?${chosen}`);
  shown.older.push(...page.edits);
  shown.next = page.next;
  showEdits();
}));
