// @ts-check
// The served models: their properties, and whether each is in memory.

import { ask, lines } from "./api.js";
import { at, make, say, short, size } from "./dom.js";

/** @type {Map<string, string>} the pending command of each model */
const busy = new Map();
let shown = "";
/** @type {any[]} */
let latest = [];

/** @param {any[]} models @param {any} state */
export function update(models, state) {
  latest = models;
  const memory = new Map();
  for (const backend of state?.backends ?? []) {
    memory.set(backend.model, (memory.get(backend.model) ?? 0) + (backend.memory_bytes ?? 0));
  }
  const loaded = models.filter((model) => model.state === "loaded").length;
  at("models-lead").textContent = `${loaded} of ${models.length} ${models.length === 1 ? "model is" : "models are"} in memory. A request that names another one loads it.`;
  // Only changed parts are redrawn: otherwise the focus would be lost each second.
  const sketch = JSON.stringify([models, [...memory], [...busy]]);
  if (sketch === shown) return;
  shown = sketch;
  const focused = document.activeElement?.getAttribute("data-model");
  at("model-rows").replaceChildren(...models.map((model) => row(model, memory.get(model.id))));
  if (focused) /** @type {HTMLElement | null} */ (document.querySelector(`[data-model="${CSS.escape(focused)}"]`))?.focus();
}

/** @param {any} model @param {number | undefined} bytes */
function row(model, bytes) {
  const state = busy.get(model.id) ?? model.state;
  const cell = (/** @type {string} */ text) => make("td", { class: "number" }, text);
  return make(
    "tr",
    {},
    make("th", { scope: "row" }, model.id),
    make("td", {}, make("span", { class: `state ${state}` }, state)),
    cell(size(model.size)),
    cell(size(bytes)),
    cell(short(model.parameters)),
    make("td", {}, model.quantization || "–"),
    cell(model.context_window ? model.context_window.toLocaleString("en") : "–"),
    make("td", {}, (model.capabilities ?? []).join(", ") || "–"),
    make("td", {}, ...action(model)),
  );
}

/** @param {any} model */
function action(model) {
  if (busy.has(model.id)) return [];
  const loadable = model.state === "stored" && model.capabilities.includes("completion");
  if (!loadable && !model.on_demand) return [];
  const word = loadable ? "Load" : "Unload";
  const button = make("button", { type: "button", class: "quiet", "data-model": model.id, "aria-label": `${word} ${model.id}` }, word);
  const tell = loadable
    ? () => change(model.id, "loading", "is loaded", "api/chat", { model: model.id, messages: [] })
    : () => change(model.id, "unloading", "is unloaded when no request uses it", "unload", { model: model.id });
  button.addEventListener("click", tell);
  return [button];
}

// Downloads.

/** @type {AbortController | null} */
let pull = null;

export function start() {
  at("pull").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!pull) void download(at("pull-name").value.trim());
  });
  at("pull-stop").addEventListener("click", () => pull?.abort());
}

/** @param {string} name */
async function download(name) {
  pull = new AbortController();
  const bar = at("pull-bar");
  at("pull-start").disabled = true;
  at("pull-stop").hidden = bar.hidden = false;
  bar.removeAttribute("value");
  tell(`Looking for ${name}`);
  try {
    for await (const line of lines("api/pull", { model: name, stream: true }, pull.signal)) {
      if (line.total) {
        bar.value = line.completed / line.total;
        at("pull-step").textContent = `${Math.round(100 * bar.value)} % of ${size(line.total)}`;
      } else if (line.status !== "success") {
        bar.removeAttribute("value");
        tell(line.status);
      }
    }
    tell(`${name} is in the store.`);
  } catch (error) {
    const stopped = pull.signal.aborted;
    tell(stopped ? `The download is stopped; the next one resumes it.` : /** @type {Error} */ (error).message);
  } finally {
    pull = null;
    at("pull-start").disabled = false;
    at("pull-stop").hidden = bar.hidden = true;
  }
}

/** @param {string} text */
function tell(text) {
  if (at("pull-step").textContent !== text) at("pull-step").textContent = text;
}

/** @param {string} name @param {string} doing @param {string} done @param {string} path @param {any} body */
async function change(name, doing, done, path, body) {
  busy.set(name, doing);
  update(latest, null);
  at("models-notice").textContent = "";
  try {
    await ask(path, { body });
    say(`${name} ${done}`);
  } catch (error) {
    at("models-notice").textContent = `${name}: ${/** @type {Error} */ (error).message}`;
  } finally {
    busy.delete(name);
  }
}
