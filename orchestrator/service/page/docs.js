"use strict";
// The API's description as a page on which every call can be tried, without anything from the network.
const KEY = "errata-token";
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
  box.append(tryIt(schema, path, verb, found));
  box.append(folded("Answers", Object.fromEntries(
    Object.entries(found.responses).map(([code, answer]) => [code, answer.description]))));
  return box;
}

// an example of a body, from its schema: what is required, or the first few fields
function example(schema, root, depth = 0) {
  if (!schema || depth > 5) return null;
  if (schema.$ref) return example(root.components.schemas[schema.$ref.split("/").pop()], root, depth + 1);
  if (schema.anyOf) return example(schema.anyOf.find((one) => one.type !== "null"), root, depth + 1);
  if (schema.default !== undefined && schema.default !== null) return schema.default;
  if (schema.enum) return schema.enum[0];
  if (schema.const !== undefined) return schema.const;
  if (schema.type === "object" || schema.properties) {
    const names = Object.keys(schema.properties || {}), wanted = schema.required && schema.required.length ? schema.required : names.slice(0, 1);
    return Object.fromEntries(wanted.map((name) => [name, example(schema.properties[name], root, depth + 1)]));
  }
  if (schema.type === "array") return [example(schema.items, root, depth + 1)];
  return { string: "text", integer: 1, number: 1, boolean: false }[schema.type] ?? null;
}

function field(form, name, label, control) {
  const box = make("label", label);
  control.name = name;
  box.append(control);
  form.append(box);
  return control;
}

function tryIt(schema, path, verb, found) {
  const box = make("details"), form = make("form", undefined, "try"), answer = make("pre");
  box.append(make("summary", "Try it"), form);
  const inputs = (found.parameters || []).map((one) => {
    const control = field(form, one.name, `${one.name}${one.required ? "" : " (optional)"}`, make("input"));
    control.required = Boolean(one.required);
    return [one, control];
  });
  let body = null;
  if (found.requestBody) {
    body = field(form, "body", "Body, JSON", make("textarea"));
    const wanted = found.requestBody.content["application/json"].schema;
    body.value = JSON.stringify(example(wanted, schema) ?? {}, null, 2);
  }
  const send = make("button", `Send ${verb.toUpperCase()}`);
  send.type = "submit";
  answer.hidden = true;
  answer.tabIndex = 0;
  answer.setAttribute("aria-label", `Answer of ${verb.toUpperCase()} ${path}`);
  form.append(send, answer);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const query = new URLSearchParams();
    let where = path;
    for (const [one, control] of inputs) {
      if (one.in === "path") where = where.replace(`{${one.name}}`, encodeURIComponent(control.value));
      else if (control.value) query.set(one.name, control.value);
    }
    const headers = {}, token = sessionStorage.getItem(KEY);
    if (token) headers.Authorization = `Bearer ${token}`;
    if (body) headers["Content-Type"] = "application/json";
    const address = query.size ? `${where}?${query}` : where;
    answer.hidden = false;
    answer.textContent = "…";
    try {
      const got = await fetch(address, { method: verb.toUpperCase(), headers, body: body ? body.value : undefined });
      const text = await got.text();
      let shown = text;
      try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* metrics are text */ }
      answer.textContent = `${got.status} ${got.statusText}\n${shown}`;
    } catch (error) {
      answer.textContent = `The service cannot be reached: ${error.message}`;
    }
  });
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
document.getElementById("token").value = sessionStorage.getItem(KEY) || "";
document.getElementById("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, document.getElementById("token").value.trim());
});
