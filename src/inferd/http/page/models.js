// @ts-check
// The models that are served: what each is, and whether it is in memory.

import { ask } from "./api.js";
import { at, make, say, short, size } from "./dom.js";

/** @type {Map<string, string>} what a model is being told to do */
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
  at("models-lead").textContent = `${loaded} of ${models.length} ${models.length === 1 ? "model is" : "models are"} in memory. A request that names another one loads it; inferd pull brings more.`;
  // Only what has changed is drawn anew, or the focus would be lost each second.
  const sketch = JSON.stringify([models, [...memory], [...busy]]);
  if (sketch === shown) return;
  shown = sketch;
  const focused = document.activeElement?.getAttribute("data-load");
  at("model-rows").replaceChildren(...models.map((model) => row(model, memory.get(model.id))));
  if (focused) /** @type {HTMLElement | null} */ (document.querySelector(`[data-load="${CSS.escape(focused)}"]`))?.focus();
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
  if (model.state !== "stored" || busy.has(model.id) || !model.capabilities.includes("completion")) return [];
  const button = make("button", { type: "button", class: "quiet", "data-load": model.id, "aria-label": `Load ${model.id}` }, "Load");
  button.addEventListener("click", () => load(model.id));
  return [button];
}

/** @param {string} name */
async function load(name) {
  busy.set(name, "loading");
  update(latest, null);
  try {
    await ask("api/chat", { body: { model: name, messages: [] } });
    say(`${name} is loaded`);
  } catch (error) {
    at("models-lead").textContent = /** @type {Error} */ (error).message;
    say(/** @type {Error} */ (error).message);
  } finally {
    busy.delete(name);
  }
}
