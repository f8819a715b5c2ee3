"use strict";
// Where everything stands, who may do what, and the loop that keeps it so.
let role = "read", turn = 0;

const allowed = (wanted) => ROLES.indexOf(role) >= ROLES.indexOf(wanted);

function showRole() {
  for (const node of document.querySelectorAll("[data-role]")) {
    if (node.id !== "pause" && node.id !== "resume" && node.id !== "revert-form") node.hidden = !allowed(node.dataset.role);
  }
}

function showStatus(status) {
  $("login").hidden = true;
  $("forget").hidden = !token;
  role = status.role;
  showRole();
  pill(status.state);
  const head = status.version;
  $("about").textContent = `${status.model} · v${head.sequence} · ${head.digest.slice(0, 12)}`
    + (status.paused ? ` · paused: ${status.paused}` : "");
  $("pause").hidden = status.paused !== null || !allowed("admin");
  $("resume").hidden = status.paused === null || !allowed("admin");
  const starting = status.state === "starting", stages = status.progress.filter((one) => one.total || starting);
  $("starting").hidden = !starting && !stages.length;
  $("starting-title").textContent = starting ? "Starting" : "Under way";
  $("starting-note").hidden = !starting;
  $("stages").replaceChildren(...(stages.length ? stages.map(stageItem) : [make("li", "loading the model and the memory", "told")]));
  if (status.problem) notice(`The service has failed and writes nothing: ${status.problem}`);
  else if (status.stream_stopped) notice(`The stream has stopped: ${status.stream_stopped}`);
  const figures = [
    [status.edits.waiting, "waiting"], [status.edits.applied, "applied"], [status.edits.weak, "weak"], [status.edits.superseded, "superseded"],
    [status.edits.reverted, "taken back"], [status.edits.rejected, "rejected"], [status.refreshes, "refreshes"],
  ];
  if (status.guard) figures.push([status.guard.breaches, "guard breaches"]);
  $("figures").replaceChildren(...figures.map(([value, label]) => {
    const box = make("div", undefined, "figure");
    box.append(make("b", value), make("span", label));
    return box;
  }));
}

function stageItem(stage) {
  if (!stage.total) return make("li", `${stage.name}, ${stage.note}`, "told");
  const item = make("li"), bar = make("progress");
  bar.max = stage.total || 1;
  bar.value = stage.done;
  bar.setAttribute("aria-label", stage.name);
  item.append(make("span", stage.name), bar, make("small", `${Math.round(stage.done).toLocaleString()} of ${Math.round(stage.total).toLocaleString()}${stage.note ? `, ${stage.note}` : ""}`));
  return item;
}

// what a service may not have, or not yet, leaves the rest alone
async function shownIf(path, show) {
  try {
    show(await call("GET", path));
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 401) throw error;
  }
}

async function refresh() {
  showStatus(await call("GET", "/v1/status"));
  const [versions, evaluations] = await Promise.all([
    call("GET", "/v1/versions?limit=100"), call("GET", "/v1/evaluations?limit=200"), listEdits(),
  ]);
  showVersions(versions.versions);
  showEvaluations(evaluations);
  showCurves(evaluations.evaluations, versions.versions);
  // these change seldom
  if (turn % 3 === 0) {
    await Promise.all([
      shownIf("/v1/refreshes", showRefreshes), shownIf("/v1/guard", showGuard),
      shownIf("/v1/router", showRouter), shownIf("/v1/publications", showPublications),
    ]);
  }
  turn += 1;
}

$("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  sessionStorage.setItem(KEY, token);
  turn = 0;
  attempt(refresh);
});
$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  window.location.reload();
});
$("pause").addEventListener("click", () => attempt(async () => {
  const reason = window.prompt("Why? Kept in the journal; edits are still accepted.", "");
  if (reason === null) return;
  await call("POST", "/v1/pause", reason.trim() ? { reason: reason.trim() } : {});
  await refresh();
}));
$("resume").addEventListener("click", () => attempt(async () => { await call("POST", "/v1/resume", {}); await refresh(); }));

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
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const one of Object.values(drawn)) one.text = null;
  $("legend").replaceChildren();
  turn = 0;
});
// #ask=... is a link to a question
const linked = new URLSearchParams(window.location.hash.slice(1)).get("ask");
if (linked) {
  $("question").value = linked;
  ask(linked);
}
