"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  Charts.all();
  const table = document.getElementById("fact-table");
  if (!table) return;
  const page = 40;
  const facts = [...table.tBodies];
  const words = facts.map((fact) => fact.textContent.toLowerCase());
  const tags = facts.map((fact) => fact.dataset.tags.split(" "));
  const search = document.getElementById("search");
  const outcome = document.getElementById("outcome");
  const shown = document.getElementById("shown");
  const more = document.getElementById("more");
  const all = document.getElementById("all");
  const nothing = document.getElementById("nothing");
  let limit = page;

  const open = (button, wide) => {
    button.setAttribute("aria-expanded", String(wide));
    button.closest("tbody").classList.toggle("wide", wide);
  };
  for (const button of table.querySelectorAll("button.open")) {
    open(button, false);
    button.addEventListener("click", () => open(button, button.getAttribute("aria-expanded") !== "true"));
  }

  const refresh = () => {
    const parts = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let matching = 0;
    facts.forEach((fact, index) => {
      const fits = parts.every((part) => words[index].includes(part))
        && (outcome.value === "" || tags[index].includes(outcome.value));
      if (fits) matching += 1;
      fact.hidden = !fits || matching > limit;
    });
    const visible = Math.min(matching, limit);
    shown.textContent = visible === matching
      ? `${matching} of ${facts.length} facts` : `${visible} of ${matching} matching facts`;
    more.hidden = all.hidden = visible === matching;
    more.textContent = `Show ${Math.min(page, matching - visible)} more`;
    all.textContent = `Show all ${matching}`;
    nothing.hidden = matching > 0;
    table.hidden = matching === 0;
  };
  const restart = () => { limit = page; refresh(); };
  search.addEventListener("input", restart);
  outcome.addEventListener("change", restart);
  search.form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { limit += page; refresh(); });
  all.addEventListener("click", () => { limit = Infinity; refresh(); });
  refresh();
})();
