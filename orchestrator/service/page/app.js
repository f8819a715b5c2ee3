"use strict";
// The page of the service. It asks the same API as every client; what comes back is shown as text, never as markup.
const $ = (id) => document.getElementById(id);
const ARMS = { routed: "routed", base: "unedited", edited: "edited", memory: "memory", edited_memory: "edited + memory" };
const METRICS = { efficacy: "Efficacy", generalization: "Generalization", specificity: "Specificity" };
const KEY = "errata-token";
const shown = { edits: [], next: null, older: [] };
let token = sessionStorage.getItem(KEY) || "";

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function call(method, path, body) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, data.error ? data.error.message : answer.statusText);
  return data;
}

function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text || "";
}

// What a person asked for: errors are shown, and the token's box where the token is the matter.
async function attempt(work) {
  try {
    notice("");
    await work();
  } catch (error) {
    failed(error);
  }
}

function failed(error) {
  if (error instanceof Refused && error.status === 401) {
    $("login").hidden = false;
    if (token) notice("The service does not know this token.");
  } else if (error instanceof Refused) {
    notice(error.message);
  } else {
    pill("offline");
    notice("The service cannot be reached.");
  }
}

function pill(state) {
  $("state").textContent = state;
  $("state").className = `pill ${state}`;
}

const when = (text) => (text ? new Date(text).toLocaleString([], { dateStyle: "short", timeStyle: "medium" }) : "");

function showStatus(status) {
  $("login").hidden = true;
  $("forget").hidden = !token;
  pill(status.state);
  const head = status.version;
  $("about").textContent = `${status.model} · v${head.sequence} · ${head.digest.slice(0, 12)}`
    + (status.paused ? ` · paused: ${status.paused}` : "");
  $("pause").hidden = status.paused !== null;
  $("resume").hidden = status.paused === null;
  const figures = [
    [status.edits.waiting, "waiting"], [status.edits.applied, "applied"], [status.edits.superseded, "superseded"],
    [status.edits.reverted, "taken back"], [status.edits.rejected, "rejected"], [status.refreshes, "refreshes"],
  ];
  if (status.guard) figures.push([status.guard.breaches, "guard breaches"]);
  $("figures").replaceChildren(...figures.map(([value, label]) => {
    const box = make("div", undefined, "figure");
    box.append(make("b", value), make("span", label));
    return box;
  }));
}

function editRow(edit) {
  const row = make("tr"), fact = make("td", undefined, "fact"), state = make("td"), act = make("td");
  const text = edit.prompt ? edit.prompt.replace("{}", edit.subject) : edit.id;
  fact.append(make("div", edit.target_new ? `${text} → ${edit.target_new}` : text));
  const note = [edit.id, edit.provenance && edit.provenance.who, edit.reason].filter(Boolean).join(" · ");
  fact.append(make("small", note));
  state.append(make("span", edit.state, `pill ${edit.state}`));
  if (edit.applied_in) state.append(make("div", `in v${edit.applied_in}`, "mono"));
  if (edit.state === "applied" || edit.state === "waiting") {
    const button = make("button", edit.state === "applied" ? "Revert" : "Withdraw", "small");
    button.type = "button";
    button.addEventListener("click", () => takeBack(edit, button));
    act.append(button);
  }
  row.append(fact, state, make("td", when(edit.accepted_at), "mono"), act);
  return row;
}

function takeBack(edit, button) {
  const text = edit.prompt ? edit.prompt.replace("{}", edit.subject) : edit.id;
  if (!window.confirm(`Take back “${text} ${edit.target_new}”?`)) return;
  button.disabled = true;
  attempt(async () => {
    const done = await call("DELETE", `/v1/edits/${encodeURIComponent(edit.id)}`);
    if (done.state === "reverting") notice("It is taken back after the batch under way.");
    await refresh();
  });
}

function showEdits() {
  $("edits").replaceChildren(...shown.edits.concat(shown.older).map(editRow));
  $("more-edits").hidden = shown.next === null;
}

function showVersions(versions) {
  $("versions").replaceChildren(...versions.map((version) => {
    const row = make("tr"), name = make("td");
    name.append(make("span", `v${version.sequence} `), make("span", version.digest.slice(0, 10), "mono"));
    row.append(name, make("td", version.kind), make("td", version.edits),
      make("td", version.seconds.toFixed(2)), make("td", when(version.at), "mono"));
    return row;
  }));
}

function showCurves(evaluations, versions) {
  const points = evaluations.slice().sort((a, b) => a.edits - b.edits);
  const arms = Object.keys(ARMS).filter((arm) => points.some((point) => point.arms && point.arms[arm]));
  const charts = Object.entries(METRICS).map(([metric, title]) => Curves.draw(title, arms.map((arm) => ({
    style: arm,
    points: points.filter((p) => p.arms && p.arms[arm] && typeof p.arms[arm][metric] === "number")
      .map((p) => [p.edits, p.arms[arm][metric]]),
  })), [0, 1]));
  const written = versions.slice().reverse().filter((version) => version.at)
    .map((version) => [(Date.parse(version.at) - Date.parse(versions[0].at)) / 60000, version.edits]);
  if (written.length > 1) charts.push(Curves.draw("Edits written, over minutes", [{ style: "count", points: written }]));
  $("curves-note").hidden = arms.length > 0;
  $("legend").replaceChildren(...arms.map((arm) => {
    const item = make("li");
    item.append(Curves.key(arm), make("span", ARMS[arm]));
    return item;
  }));
  $("curves").replaceChildren(...(arms.length ? charts : charts.slice(3)));
}

async function refresh() {
  showStatus(await call("GET", "/v1/status"));
  const [edits, versions, points] = await Promise.all([
    call("GET", "/v1/edits?limit=20"), call("GET", "/v1/versions?limit=100"),
    call("GET", "/v1/evaluations?kind=timeline&limit=200"),
  ]);
  shown.edits = edits.edits;
  if (!shown.older.length) shown.next = edits.next;
  else shown.older = shown.older.filter((edit) => !edits.edits.length || edit.number < edits.edits.at(-1).number);
  showEdits();
  showVersions(versions.versions.slice(0, 12));
  showCurves(points.evaluations, versions.versions);
}

function showAnswers(found) {
  const [one] = found.answers;
  const head = make("p", `“${one.question}” at v${found.sequence}, ${found.seconds.toFixed(1)} s`, "asked quiet");
  const boxes = Object.keys(ARMS).filter((arm) => one.arms[arm]).map((arm) => {
    const answer = one.arms[arm], box = make("article", undefined, `arm ${arm}`);
    box.append(make("h3", ARMS[arm]), make("p", answer.answer || "(nothing)", "answer"));
    if (answer.reason) {
      const told = answer.chosen ? `given: ${answer.chosen.statement}` : "no statement given";
      box.append(make("p", `${told} – ${answer.reason}`, "why"));
    }
    if (answer.retrieved && answer.retrieved.length) {
      const list = make("details");
      list.append(make("summary", `${answer.retrieved.length} found`));
      for (const hit of answer.retrieved) list.append(make("p", `${hit.similarity.toFixed(2)} ${hit.statement}`, "why"));
      box.append(list);
    }
    return box;
  });
  $("answers").replaceChildren(head, ...boxes);
}

function ask(question) {
  $("answers").replaceChildren(make("p", "asking…", "asked quiet"));
  return attempt(async () => {
    try {
      showAnswers(await call("POST", "/v1/query", { question }));
    } catch (error) {
      $("answers").replaceChildren();
      throw error;
    }
  });
}

$("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  sessionStorage.setItem(KEY, token);
  attempt(refresh);
});
$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  window.location.reload();
});
$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("question").value);
});
$("edit-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target, edit = {};
  for (const name of ["subject", "prompt", "target_new"]) edit[name] = form.elements[name].value;
  if (form.elements.why.value) edit.provenance = { why: form.elements.why.value, source: "page" };
  attempt(async () => {
    await call("POST", "/v1/edits", edit);
    form.reset();
    await refresh();
  });
});
$("pause").addEventListener("click", () => attempt(async () => { await call("POST", "/v1/pause", {}); await refresh(); }));
$("resume").addEventListener("click", () => attempt(async () => { await call("POST", "/v1/resume", {}); await refresh(); }));
$("more-edits").addEventListener("click", () => attempt(async () => {
  const page = await call("GET", `/v1/edits?limit=50&before=${shown.next}`);
  shown.older.push(...page.edits);
  shown.next = page.next;
  showEdits();
}));

async function loop() {
  let pause = 3000;
  try {
    await refresh();
  } catch (error) {
    failed(error);
    pause = 8000;
  }
  window.setTimeout(loop, document.hidden ? 15000 : pause);
}
loop();
// #ask=... is a link to a question
const linked = new URLSearchParams(window.location.hash.slice(1)).get("ask");
if (linked) {
  $("question").value = linked;
  ask(linked);
}
