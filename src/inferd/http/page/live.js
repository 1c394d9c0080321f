// @ts-check
// The activity of the daemon: plots from the differences between two states, and the list of requests.

import { at, make, size, time } from "./dom.js";
import { Plot } from "./plot.js";

const share = (/** @type {number} */ value) => `${Math.round(value * 100)} %`;
const rate = (/** @type {number} */ value) => value.toFixed(value < 10 ? 1 : 0);

const plots = {
  tokens: new Plot("Tokens per second", ["answer"], rate, 10),
  queue: new Plot("Requests", ["running", "waiting"], (value) => value.toFixed(0), 4),
  first: new Plot("Time to first token", ["mean"], time, 0.1),
  prompt: new Plot("Prompt tokens per second", ["prompt"], rate, 100),
  cache: new Plot("Prompt from the cache", ["share"], share, 1),
  memory: new Plot("Memory of the models", ["memory"], size, 2 ** 20),
};

/** @type {any} */
let before = null;

export function start() {
  at("plots").append(...Object.values(plots).map((plot) => plot.element));
}

/** The totals that only grow, over all backends. @param {any} state */
function totals(state) {
  const sum = { pieces: 0, gaps: 0, first: 0, firstSum: 0, prompt: 0, cached: 0, done: 0 };
  for (const one of Object.values(state.metrics.backends)) {
    sum.pieces += one.completion_tokens;
    sum.gaps += one.inter_token_seconds.count;
    sum.first += one.time_to_first_token_seconds.count;
    sum.firstSum += one.time_to_first_token_seconds.sum;
    sum.prompt += one.prompt_tokens;
    sum.cached += one.cached_tokens;
  }
  for (const one of Object.values(state.metrics.surfaces)) sum.done += one.done;
  return sum;
}

/** Takes a newer state of the daemon. @param {any} state */
export function update(state) {
  const now = totals(state);
  const old = before && before.uptime < state.uptime_secs ? before : null;
  before = { ...now, uptime: state.uptime_secs };
  if (old) {
    const span = state.uptime_secs - old.uptime;
    const prompt = now.prompt - old.prompt;
    const first = now.first - old.first;
    plots.tokens.add((now.first + now.gaps - old.first - old.gaps) / span);
    plots.first.add(first ? (now.firstSum - old.firstSum) / first : null);
    plots.prompt.add(prompt / span);
    plots.cache.add(prompt ? (now.cached - old.cached) / prompt : null);
    plots.queue.add(state.running.length, state.waiting.length);
    plots.memory.add(memory(state));
  }
  at("live-lead").textContent =
    `inferd ${state.version}, up ${time(state.uptime_secs)}. Requests answered: ${now.done.toLocaleString("en")}. ` +
    `${state.active_permits} run at a time, ${state.queue_depth} may wait.`;
  rows(state);
}

/** @param {any} state */
function memory(state) {
  let sum = 0;
  for (const backend of state.backends) sum += backend.memory_bytes ?? 0;
  for (const one of Object.values(state.metrics.backends)) sum += one.cache_bytes;
  return sum;
}

/** @param {any} state */
function rows(state) {
  const all = [...state.running, ...state.waiting];
  const cell = (/** @type {string} */ text, number = false) => make("td", number ? { class: "number" } : {}, text);
  at("request-rows").replaceChildren(
    ...all.map((row) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, row.position ? `waits at ${row.position}` : "runs"),
        cell(row.caller ?? "–"),
        cell(row.backend ?? "–"),
        cell(time(row.age_ms / 1000), true),
        cell(time(row.queue_ms / 1000), true),
        cell(String(row.tokens), true),
      ),
    ),
    ...(all.length ? [] : [make("tr", {}, make("td", { colspan: "6", class: "none" }, "No request runs or waits."))]),
  );
}
