"use strict";
// The API's description as a page, without anything from the network.
function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function folded(title, value) {
  const box = make("details");
  box.append(make("summary", title), make("pre", JSON.stringify(value, null, 2)));
  return box;
}

function operation(schema, path, verb, found) {
  const box = make("div", undefined, "op"), head = make("div");
  head.append(make("span", verb.toUpperCase(), "verb"), make("code", path));
  box.append(head, make("p", found.description || found.summary || "", "quiet"));
  if (found.parameters && found.parameters.length) {
    box.append(folded("Parameters", found.parameters.map(({ name, in: place, required, schema: kind, description }) =>
      ({ name, in: place, required: Boolean(required), description, schema: kind }))));
  }
  if (found.requestBody) box.append(folded("Body", found.requestBody.content["application/json"].schema));
  box.append(folded("Answers", Object.fromEntries(
    Object.entries(found.responses).map(([code, answer]) => [code, answer.description]))));
  return box;
}

async function show() {
  const schema = await (await fetch("/openapi.json")).json();
  const groups = new Map();
  for (const [path, verbs] of Object.entries(schema.paths)) {
    for (const [verb, found] of Object.entries(verbs)) {
      const name = (found.tags || ["other"])[0];
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(operation(schema, path, verb, found));
    }
  }
  const cards = [...groups].map(([name, boxes]) => {
    const card = make("section", undefined, "card");
    card.append(make("h2", name[0].toUpperCase() + name.slice(1)), ...boxes);
    return card;
  });
  const models = make("section", undefined, "card");
  models.append(make("h2", "Schemas"));
  for (const [name, value] of Object.entries(schema.components.schemas)) models.append(folded(name, value));
  document.getElementById("operations").replaceChildren(...cards, models);
}
show();
