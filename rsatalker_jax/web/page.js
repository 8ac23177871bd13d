"use strict";
// What the scripts of all pages share; they are loaded after this one.
const byId = (id) => document.getElementById(id);
const BASE = location.pathname.replace(/\/$/, "");

/** An element with text; never with markup, wherever the text comes from. */
function make(name, text = "", properties = {}) {
  const element = Object.assign(document.createElement(name), properties);
  element.textContent = text;
  return element;
}

/** What `act` returns, or null: browsers may forbid their storage. */
function keep(act) {
  try {
    return act();
  } catch {
    return null;
  }
}

class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** JSON of an address below this page's; throws a Refusal where the server says no, a TypeError where nobody answers. */
async function ask(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(BASE + path, body === undefined ? { cache: "no-store" } : post);
  const data = await response.json().catch(() => ({ error: response.statusText }));
  if (!response.ok) throw new Refusal(response.status, data.error);
  return data;
}
