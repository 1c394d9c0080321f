// @ts-check
// A conversation: messages in order, one answer at a time. History is plain data, kept in this browser.
// (This file has over 400 lines, because sending, showing and keeping change the same open conversation.)

import { events } from "./api.js";
import { at, copier, make, say, time } from "./dom.js";
import { show } from "./markdown.js";

/** @typedef {{role: "user" | "assistant", content: string, thinking?: string, pictures?: string[], stats?: string,
 *   cut?: string}} Message */
/** @typedef {{id: string, title: string, messages: Message[]}} Conversation */

const STORE = "inferd.conversations";
const KEPT = 50;
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

/** @type {Conversation[]} */
let all = [];
/** @type {Conversation} */
let open = fresh();
/** @type {AbortController | null} */
let running = null;
/** @type {string[]} */
let pictures = [];
/** @type {any[]} */
let models = [];

/** @returns {Conversation} */
function fresh() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()), title: "", messages: [] };
}

export function start() {
  try {
    all = JSON.parse(localStorage.getItem(STORE) ?? "[]");
  } catch {
    all = [];
  }
  at("composer").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    if (running) running.abort();
    else void send();
  });
  const prompt = at("prompt");
  prompt.addEventListener("input", grow);
  prompt.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    // While an input method composes a character, Enter belongs to it.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!running) void send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running) running.abort();
    const typing = event.target instanceof HTMLElement && event.target.matches("input, textarea, select");
    if (event.key === "/" && !typing && !at("chat").hidden) {
      event.preventDefault();
      prompt.focus();
    }
  });
  at("fresh").addEventListener("click", () => choose(fresh()));
  at("model").addEventListener("change", () => {
    localStorage.setItem("inferd.model", at("model").value);
    able();
  });
  at("settings-button").addEventListener("click", () => {
    const hide = !at("settings").hidden;
    at("settings").hidden = hide;
    at("settings-button").setAttribute("aria-expanded", String(!hide));
  });
  at("file").addEventListener("change", () => void take(at("file").files));
  for (const name of ["dragover", "drop"]) {
    at("chat").addEventListener(name, (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      if (name === "drop" && event.dataTransfer) void take(event.dataTransfer.files);
    });
  }
  list();
}

// Models.

/** The models that can be chosen. @param {any[]} served */
export function offer(served) {
  const now = served.filter((model) => model.capabilities?.includes("completion"));
  const names = now.map((model) => model.id);
  const same = names.join("\n") === models.map((model) => model.id).join("\n");
  models = now;
  if (!same) {
    const kept = at("model").value || localStorage.getItem("inferd.model");
    at("model").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    if (names.includes(kept)) at("model").value = kept;
  }
  able();
}

/** Shows the controls for the features of the chosen model. */
function able() {
  const can = models.find((model) => model.id === at("model").value)?.capabilities ?? [];
  at("attach").hidden = !can.includes("vision");
  at("thinking-label").hidden = !can.includes("thinking");
}

// Sending.

/** The settings as fields of the request; nothing, and a notice, for a schema that is not JSON. */
function settings() {
  /** @type {Record<string, any>} */
  const found = {};
  for (const name of NUMBERS) {
    const value = at(`set-${name}`).value;
    if (value !== "") found[name] = Number(value);
  }
  const schema = at("set-schema").value.trim();
  if (schema) {
    try {
      found.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(schema) } };
    } catch {
      at("notice").textContent = "The JSON Schema in the settings is not valid JSON.";
      return null;
    }
  }
  if (!at("thinking-label").hidden && !at("set-thinking").checked) found.reasoning_effort = "none";
  return found;
}

/** @param {Message} message */
function told(message) {
  if (message.role === "assistant") {
    return { role: "assistant", content: message.content, reasoning_content: message.thinking || undefined };
  }
  if (!message.pictures?.length) return { role: "user", content: message.content };
  const parts = message.pictures.map((url) => ({ type: "image_url", image_url: { url } }));
  return { role: "user", content: [...parts, { type: "text", text: message.content }] };
}

async function send() {
  const text = at("prompt").value.trim();
  if ((!text && !pictures.length) || !settings()) return;
  /** @type {Message} */
  const message = { role: "user", content: text };
  if (pictures.length) message.pictures = pictures;
  at("prompt").value = "";
  pictures = [];
  previews();
  grow();
  open.title ||= text.slice(0, 60) || "A picture";
  open.messages.push(message);
  put(message);
  await answer();
}

/** Requests the next answer of the open conversation. */
async function answer() {
  const conversation = open;
  const asked = settings();
  if (!asked) return;
  at("notice").textContent = "";
  const system = at("set-system").value.trim();
  const messages = conversation.messages.map(told);
  const body = {
    model: at("model").value || "default",
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
    ...asked,
  };
  /** @type {Message} */
  const message = { role: "assistant", content: "" };
  const shown = put(message, true);
  const control = (running = new AbortController());
  busy(true);
  say("The model answers");
  const began = performance.now();
  let first = 0;
  let drawing = 0;
  const draw = () => {
    drawing = 0;
    const follow = isAtEnd();
    render(shown, message);
    if (follow) toEnd();
  };
  try {
    for await (const event of events("v1/chat/completions", body, control.signal)) {
      const [choice] = event.choices;
      const delta = choice?.delta ?? {};
      if (delta.content || delta.reasoning_content) first ||= performance.now();
      message.content += delta.content ?? "";
      if (delta.reasoning_content) message.thinking = (message.thinking ?? "") + delta.reasoning_content;
      if (choice?.finish_reason === "length") message.cut = "Cut at the limit of tokens.";
      if (event.usage) message.stats = stats(event.usage, first - began, performance.now() - first);
      drawing ||= requestAnimationFrame(draw);
    }
    say("The answer is complete");
  } catch (error) {
    if (control.signal.aborted) message.cut = "Stopped.";
    else at("notice").textContent = /** @type {Error} */ (error).message;
    say(message.cut ?? "The answer failed");
  } finally {
    cancelAnimationFrame(drawing);
    running = null;
    busy(false);
    shown.classList.remove("growing");
    if (message.content || message.thinking) conversation.messages.push(message);
    else shown.remove();
    draw();
    actions(shown, message);
    save(conversation);
  }
}

/** @param {any} usage @param {number} first ms to the first token @param {number} rest ms after it */
function stats(usage, first, rest) {
  const tokens = usage.completion_tokens;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const parts = [tokens === 1 ? "1 token" : `${tokens} tokens`];
  if (tokens > 1 && rest > 0) parts.push(`${((tokens - 1) / (rest / 1000)).toFixed(1)} tokens/s`);
  if (first > 0) parts.push(`first after ${time(first / 1000)}`);
  parts.push(`prompt ${usage.prompt_tokens}${cached ? `, ${cached} of them cached` : ""}`);
  return parts.join(" · ");
}

/** @param {boolean} is */
function busy(is) {
  at("send").textContent = is ? "Stop" : "Send";
  at("send").classList.toggle("stop", is);
  at("log").setAttribute("aria-busy", String(is));
  at("fresh").disabled = is;
  for (const button of document.querySelectorAll("#conversations button, .message button.act")) {
    /** @type {HTMLButtonElement} */ (button).disabled = is;
  }
}

// Showing.

/** @param {Message} message @param {boolean} [growing] @returns {HTMLElement} */
function put(message, growing = false) {
  at("empty").hidden = true;
  const shown = make(
    "article",
    { class: `message ${message.role}${growing ? " growing" : ""}`, "aria-label": message.role === "user" ? "You" : "Model" },
    make("div", { class: "body" }),
    make("p", { class: "foot" }),
  );
  at("log").append(shown);
  render(shown, message);
  if (!growing) actions(shown, message);
  toEnd();
  return shown;
}

/** @param {HTMLElement} shown @param {Message} message */
function render(shown, message) {
  const body = /** @type {HTMLElement} */ (shown.firstElementChild);
  if (message.role === "user") {
    body.replaceChildren(
      ...(message.pictures ?? []).map((url) => make("img", { src: url, alt: "The picture that was sent" })),
      make("p", {}, message.content),
    );
    return;
  }
  let [fold, text] = /** @type {any} */ (body.children);
  if (!text) {
    fold = make("details", { class: "thinking", hidden: true }, make("summary", {}, "Thinking"), make("div", {}));
    text = make("div", { class: "text" });
    body.append(fold, text);
  }
  if (message.thinking) {
    fold.hidden = false;
    show(fold.lastElementChild, message.thinking);
  }
  show(text, message.content);
  const foot = /** @type {HTMLElement} */ (shown.lastElementChild);
  foot.textContent = [message.cut, message.stats].filter(Boolean).join(" ");
}

/** Adds the buttons below a message. @param {HTMLElement} shown @param {Message} message */
function actions(shown, message) {
  const acts = make("span", { class: "acts" });
  shown.lastElementChild?.append(acts);
  const act = (/** @type {string} */ name, /** @type {() => void} */ run) => {
    const button = make("button", { type: "button", class: "quiet act" }, name);
    button.addEventListener("click", run);
    acts.append(button);
  };
  if (message.role === "user") {
    act("Edit", () => {
      const from = open.messages.indexOf(message);
      cutFrom(from);
      at("prompt").value = message.content;
      pictures = message.pictures ?? [];
      previews();
      grow();
      at("prompt").focus();
    });
    return;
  }
  acts.append(copier(message.content, "act"));
  act("Again", () => {
    cutFrom(open.messages.indexOf(message));
    at("prompt").focus();
    void answer();
  });
}

/** Drops a message and all messages after it. @param {number} place */
function cutFrom(place) {
  open.messages.length = place;
  save(open);
  refill();
}

function refill() {
  for (const shown of at("log").querySelectorAll(".message")) shown.remove();
  at("empty").hidden = open.messages.length > 0;
  for (const message of open.messages) put(message);
}

function isAtEnd() {
  const log = at("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}

function toEnd() {
  at("log").scrollTop = at("log").scrollHeight;
}

function grow() {
  const prompt = at("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, 240)}px`;
}

// Pictures.

/** @param {FileList} files */
async function take(files) {
  if (at("attach").hidden) {
    at("notice").textContent = "This model does not take pictures.";
    return;
  }
  for (const file of files) {
    if (!file.type.startsWith("image/")) continue;
    pictures.push(
      await new Promise((resolve) => {
        const reader = new FileReader();
        reader.onload = () => resolve(String(reader.result));
        reader.readAsDataURL(file);
      }),
    );
  }
  at("file").value = "";
  previews();
}

function previews() {
  at("pictures").replaceChildren(
    ...pictures.map((url, place) => {
      const drop = make("button", { type: "button", class: "quiet", "aria-label": `Remove picture ${place + 1}` }, "×");
      drop.addEventListener("click", () => {
        pictures.splice(place, 1);
        previews();
      });
      return make("figure", {}, make("img", { src: url, alt: `Picture ${place + 1} to be sent` }), drop);
    }),
  );
}

// Keeping.

/** @param {Conversation} conversation */
function save(conversation) {
  all = all.filter((each) => each.id !== conversation.id);
  if (conversation.messages.length) all.unshift(conversation);
  all = all.slice(0, KEPT);
  // Pictures would fill the browser's storage, so they are kept only as long as the tab.
  const lean = (/** @type {string} */ key, /** @type {any} */ value) => (key === "pictures" ? undefined : value);
  for (let count = all.length; count > 0; count = Math.floor(count / 2)) {
    try {
      localStorage.setItem(STORE, JSON.stringify(all.slice(0, count), lean));
      break;
    } catch {
      // The storage is full: drop the older half.
    }
  }
  if (!all.length) localStorage.removeItem(STORE);
  list();
}

/** @param {Conversation} conversation */
function choose(conversation) {
  open = conversation;
  at("notice").textContent = "";
  refill();
  list();
  at("prompt").focus();
}

function list() {
  at("conversations").replaceChildren(
    ...all.map((each) => {
      const pick = make("button", { type: "button", class: "line" }, each.title);
      if (each.id === open.id) pick.setAttribute("aria-current", "true");
      pick.addEventListener("click", () => choose(each));
      const drop = make("button", { type: "button", class: "quiet drop", "aria-label": `Delete the conversation ${each.title}` }, "×");
      drop.addEventListener("click", () => {
        if (each.id === open.id) choose(fresh());
        save({ ...each, messages: [] });
      });
      return make("li", {}, pick, drop);
    }),
  );
}
