// @ts-check
// The page: its views, its colours, and the state of the daemon that they share.

import { askForKey, get } from "./api.js";
import * as chat from "./chat.js";
import { at } from "./dom.js";
import * as live from "./live.js";
import * as models from "./models.js";

const VIEWS = ["chat", "models", "live"];
const FAST_MS = 1000;
const SLOW_MS = 5000;

function view() {
  const name = location.hash.slice(1);
  return VIEWS.includes(name) ? name : "chat";
}

function turn() {
  const now = view();
  for (const name of VIEWS) at(name).hidden = name !== now;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("data-view") === now) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = now === "chat" ? "inferd" : `inferd – ${now}`;
  if (now === "chat") at("prompt").focus();
  void look();
}

// The state of the daemon.

/** @type {number | undefined} */
let alarm;
let looking = false;

async function look() {
  if (looking) return;
  looking = true;
  clearTimeout(alarm);
  try {
    const state = await get("status");
    health(state.ready ? "ready" : "busy", state.ready ? "ready" : state.lifecycle.status.replaceAll("_", " "));
    live.update(state);
    models.update(state.models, state);
    chat.offer(state.models);
  } catch (error) {
    const failed = /** @type {import("./api.js").ApiError} */ (error);
    health("gone", failed.status === 401 ? "needs a key" : failed.status ? "not ready" : "not reachable");
  } finally {
    looking = false;
    // A hidden page sends no requests.
    if (!document.hidden) alarm = setTimeout(look, view() === "chat" ? SLOW_MS : FAST_MS);
  }
}

/** @param {string} kind @param {string} text */
function health(kind, text) {
  at("health").className = `health ${kind}`;
  if (at("health-text").textContent !== text) at("health-text").textContent = text;
}

// The colours.

const THEMES = ["auto", "light", "dark"];

function paint(theme = localStorage.getItem("inferd.theme") ?? "auto") {
  at("theme").textContent = `Theme: ${theme}`;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

at("theme").addEventListener("click", () => {
  const now = localStorage.getItem("inferd.theme") ?? "auto";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  localStorage.setItem("inferd.theme", next);
  paint(next);
});

at("key-button").hidden = !sessionStorage.getItem("inferd.key");
at("key-button").addEventListener("click", async () => {
  if (await askForKey("Another key replaces the one in use.")) void look();
});

at("key-cancel").addEventListener("click", () => at("key-dialog").close("cancel"));

document.addEventListener("visibilitychange", () => document.hidden || look());
addEventListener("hashchange", turn);
paint();
live.start();
models.start();
chat.start();
turn();
