"use strict";
// Asking, and everything below the edits: curves, evaluations, versions, covariance, guard, router, publications.
const METRICS = {
  reliability: "Reliability", efficacy: "Efficacy", generalization_gen: "Generalization, generated", generalization: "Generalization",
  locality: "Locality", specificity: "Specificity", portability: "Portability",
};
const drawn = {};

// a chart is drawn anew only when its data has changed
function chart(place, name, title, spec, spoken) {
  const text = JSON.stringify(spec);
  let node = drawn[name]?.node;
  if (!node) {
    const figure = make("figure", undefined, "panel");
    node = make("div", undefined, "chart");
    node.setAttribute("role", "img");
    figure.append(make("figcaption", title), node);
    drawn[name] = { node, figure };
  }
  node.setAttribute("aria-label", spoken);
  place.append(drawn[name].figure);
  if (drawn[name].text !== text || drawn[name].width !== node.clientWidth) {
    Charts.draw(node, spec);
    Object.assign(drawn[name], { text, width: node.clientWidth });
  }
}

function showCurves(evaluations, versions) {
  const place = $("curves"), points = evaluations.filter((e) => e.kind === "timeline").sort((a, b) => a.edits - b.edits);
  const arms = Object.keys(ARMS).filter((arm) => points.some((point) => point.arms && point.arms[arm]));
  const keep = place.scrollHeight;
  place.style.minHeight = `${keep}px`;
  place.replaceChildren();
  for (const [metric, title] of Object.entries(METRICS)) {
    const series = arms.map((arm) => ({
      style: arm, label: arm === "edited_memory" ? "both" : ARMS[arm],
      points: points.filter((p) => p.arms && p.arms[arm] && typeof p.arms[arm][metric] === "number").map((p) => [p.edits, p.arms[arm][metric]]),
    })).filter((one) => one.points.length).reverse();
    if (!series.length) continue;
    const said = series.map((one) => `${one.label} ${share(one.points.at(-1)[1])}`).join(", ");
    chart(place, metric, title, { series, form: { digits: 0, scale: 100, suffix: "%" }, range: [0, 1], xLabel: "edits applied" }, `${title} over edits applied. At the end: ${said}.`);
  }
  const written = versions.filter((version) => version.at).reverse().map((version) => [Date.parse(version.at) / 1000, version.edits]);
  if (written.length > 1) {
    const series = [{ style: "count", label: "edits", points: written }];
    chart(place, "written", "Edits written", { series, form: { digits: 0 }, xLabel: "", time: true }, `Edits written over time: ${written.at(-1)[1]} now.`);
  }
  place.style.minHeight = "";
  $("curves-note").hidden = arms.length > 0;
  $("curves-note").textContent = evaluations.length
    ? "No point of a timeline yet; the evaluations that were made are below." : "No evaluation yet.";
  if ($("legend").childElementCount !== arms.length) {
    $("legend").replaceChildren(...arms.map((arm) => {
      const item = make("li"), key = make("canvas", undefined, "chart-key");
      key.setAttribute("aria-hidden", "true");
      Charts.key(key, arm);
      item.append(key, make("span", ARMS[arm]));
      return item;
    }));
  }
}

function showEvaluations(found) {
  const waiting = found.asked.filter((one) => one.state === "waiting" || one.state === "running");
  const broken = found.asked.filter((one) => one.state === "failed").map((one) => `${one.name} failed: ${one.problem}`);
  $("evaluating").textContent = [...waiting.map((one) => `${one.name}: ${one.facts} facts, ${one.state}`), ...broken].join("; ");
  const kinds = { timeline: "timeline", final: "final", asked: "asked for" };
  const heads = ["Kind", "Edits", "Facts", "Arm", "Reliability", "Generalization", "Locality", "Portability", "When"];
  const rows = found.evaluations.slice(0, 12).flatMap((one) => Object.keys(ARMS).filter((arm) => one.arms && one.arms[arm]).map((arm, n) => {
    const of = one.arms[arm];
    return [n ? "" : kinds[one.kind] || one.kind, n ? "" : one.edits, n ? "" : one.facts, ARMS[arm], share(of.reliability ?? of.efficacy),
      share(of.generalization_gen ?? of.generalization), share(of.locality ?? of.specificity), share(of.portability), n ? "" : when(one.at)];
  }));
  table($("evaluations"), heads, rows, "No evaluation yet.", "Evaluations");
}

function versionRows(versions) {
  return versions.map((version) => {
    const name = make("span", `v${version.sequence} `), figures = version.figures || {};
    name.append(make("span", version.digest.slice(0, 10), "mono"));
    const landed = figures.landed === undefined ? "" : `${figures.landed} / ${figures.weak}`;
    return [name, version.kind, version.edits, landed, version.seconds.toFixed(2), when(version.at)];
  });
}

function showVersions(versions) {
  const heads = ["Version", "Kind", "Edits", "Landed / weak", "Seconds", "When"];
  table($("versions"), heads, versionRows(versions.slice(0, 12)), "No version yet.", "Versions");
  const repairs = versions.filter((version) => version.kind === "repair");
  table($("repairs"), heads, versionRows(repairs), "Nothing was written again: no old fact was found forgotten.", "Repairs");
}

function showRefreshes(found) {
  const force = found.in_force;
  $("covariance").textContent = force ? `In force: ${force.digest.slice(0, 10)}, ${force.tokens.toLocaleString()} tokens, layers ${force.layers.join(", ")}.` : "No covariance in force.";
  const rows = found.refreshes.map((one) => [`at ${one.triggered_at} edits`, one.state, one.seconds === null ? "" : one.seconds.toFixed(1), one.reason || "", when(one.at)]);
  table($("refreshes"), ["Refresh", "State", "Seconds", "Reason", "When"], rows, "It was not refreshed yet.", "Refreshes");
}

function showGuard(found) {
  const guard = found.guard;
  $("guard-note").textContent = guard
    ? `${guard.checks} checks, ${guard.breaches} breaches; the newest good version is v${guard.good_sequence}.${guard.paused ? ` Paused: ${guard.paused}.` : ""}`
    : "No guard is configured.";
  const rows = found.events.slice(0, 12).map((one) => [one.what, one.sequence === undefined ? "" : `v${one.sequence}`,
    one.good === undefined ? "" : one.good ? "good" : "breach", share(one.kept), one.ratio ? `×${told(one.ratio)}` : "", one.paused || "", when(one.at)]);
  if (guard) table($("guard"), ["Event", "Version", "Verdict", "Facts kept", "Perplexity", "Paused", "When"], rows, "No check yet.", "What the guard found");
}

function showRouter(found) {
  const router = found.router;
  $("router-note").textContent = router
    ? `Allowed: ${share(router.max_false_alarms)} of questions that no edit is about. Threshold ${told(router.threshold)}, ${router.statements ? `fitted among ${router.statements.toLocaleString()} statements` : "as it is shipped"}.`
    : "No routed arm is asked here.";
  if (!router || router.curve.length < 2) return;
  const points = router.curve.map((one) => [one.false_alarms, one.misses]).sort((a, b) => a[0] - b[0]).filter((p, i, all) => p[0] <= 0.2 && (!i || p[0] > all[i - 1][0]));
  const events = [{ x: router.max_false_alarms, label: "allowed", short: "", detail: "the operating point that the configuration allows" }];
  const spec = { series: [{ style: "routed", label: "missed", points }], form: { digits: 1, scale: 100, suffix: "%" }, x: { digits: 0, scale: 100, suffix: "%" },
    xLabel: "share of false alarms", events, tight: true };
  chart($("router"), "router", "Paraphrases missed, by false alarms allowed", spec, `Share of paraphrases missed over the share of false alarms: ${share(points[0][1])} at ${share(points[0][0])}, ${share(points.at(-1)[1])} at ${share(points.at(-1)[0])}.`);
}

function showPublications(found) {
  const asked = found.asked.filter((one) => one.state !== "done").map((one) => `${one.name}: v${one.sequence} ${one.state}${one.problem ? `, ${one.problem}` : ""}`);
  const served = found.servers.map((one) => `${one.server} serves ${one.serves || "the base"}`);
  $("publications-note").textContent = [...served, ...asked].join("; ");
  const rows = found.steps.slice(0, 12).map((one) => [one.what, `v${one.sequence}`, one.server || one.registry || "", one.alias || "", one.reason || "", when(one.at)]);
  table($("publications"), ["Step", "Version", "Where", "Alias", "Reason", "When"], rows, "Nothing was published yet.", "Publications");
}

function showAnswers(found) {
  const [one] = found.answers;
  const head = make("p", `“${one.question}” at v${found.sequence}, ${found.seconds.toFixed(1)} s`, "asked quiet");
  const boxes = Object.keys(ARMS).filter((arm) => one.arms[arm]).map((arm) => {
    const answer = one.arms[arm], box = make("article", undefined, `arm ${arm}`);
    box.append(make("h3", ARMS[arm]), make("p", answer.answer || "(nothing)", "answer"));
    if (answer.chosen) {
      const cited = make("p", "rests on ", "cited");
      if (answer.chosen.edit) cited.append(editLink(answer.chosen.edit), ": ");
      cited.append(make("q", answer.chosen.statement));
      box.append(cited);
    } else if (answer.reason) {
      box.append(make("p", arm === "routed" ? "about no edit: the unedited model's own answer" : "no statement given", "cited"));
    }
    if (answer.reason) box.append(make("p", answer.reason, "why"));
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

$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("question").value);
});
$("evaluate").addEventListener("click", () => attempt(async () => { await call("POST", "/v1/evaluations", {}); await refresh(); }));
$("refresh").addEventListener("click", () => attempt(async () => {
  const done = await call("POST", "/v1/refresh", {});
  if (done.started === false) notice("A refresh is under way already, or was made at this number of edits.");
  await refresh();
}));
$("publish-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target.elements, wanted = { version: form.version.value };
  if (form.alias.value.trim()) wanted.alias = form.alias.value.trim();
  attempt(async () => { await call("POST", "/v1/publications", wanted); await refresh(); });
});
