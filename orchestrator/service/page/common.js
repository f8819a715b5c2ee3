"use strict";
// What all parts of the page use. It asks the same API as every client; what comes back is shown as text, never as markup.
const $ = (id) => document.getElementById(id);
const ARMS = { routed: "routed", base: "unedited", edited: "edited", memory: "memory", edited_memory: "edited + memory" };
const KEY = "errata-token";
const ROLES = ["read", "write", "admin"];
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

function button(text, work, className = "small") {
  const node = make("button", text, className);
  node.type = "button";
  node.addEventListener("click", work);
  return node;
}

// rows of texts or nodes as a table; a sentence where there is none
function table(place, heads, rows, none, label) {
  if (!rows.length) { place.replaceChildren(make("p", none, "quiet")); return; }
  const box = make("div", undefined, "scroll"), whole = make("table"), head = make("tr"), body = make("tbody"), top = make("thead");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", label);
  for (const name of heads) { const cell = make("th", name); cell.scope = "col"; head.append(cell); }
  for (const row of rows) {
    const line = make("tr");
    for (const value of row) { const cell = make("td"); cell.append(value instanceof Node ? value : String(value ?? "")); line.append(cell); }
    body.append(line);
  }
  top.append(head);
  whole.append(top, body);
  box.append(whole);
  const at = place.firstElementChild?.scrollLeft;
  place.replaceChildren(box);
  if (at) box.scrollLeft = at;
}

function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text || "";
}

function pill(state) {
  $("state").textContent = state;
  $("state").className = `pill ${state}`;
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

const when = (text) => (text ? new Date(text).toLocaleString([], { dateStyle: "short", timeStyle: "medium" }) : "");
const share = (value) => (typeof value === "number" ? `${(100 * value).toFixed(1)}%` : "–");
const told = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value));
