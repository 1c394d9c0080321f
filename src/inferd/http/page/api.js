// @ts-check
// Requests to the bridge, with the key of this tab; errors are sentences.

import { at } from "./dom.js";

const KEY = "inferd.key";

export class ApiError extends Error {
  /** @param {string} message @param {number} status */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** @type {Promise<boolean> | null} */
let asking = null;
/** The user has declined to enter a key: only the button asks again. */
let declined = false;

/** Asks the user for a key; true if one was entered. @param {string} reason @returns {Promise<boolean>} */
export function askForKey(reason) {
  const dialog = at("key-dialog");
  at("key-button").hidden = false;
  asking ??= new Promise((resolve) => {
    at("key-reason").textContent = reason;
    at("key").value = "";
    dialog.returnValue = "cancel";
    dialog.addEventListener(
      "close",
      () => {
        const key = at("key").value.trim();
        const given = dialog.returnValue === "use" && key !== "";
        if (given) sessionStorage.setItem(KEY, key);
        declined = !given;
        asking = null;
        resolve(given);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

/** Sends one request; asks for a key if the bridge requires one. Throws ApiError.
 * @param {string} path @param {{body?: any, signal?: AbortSignal}} [more] @returns {Promise<Response>} */
export async function ask(path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    /** @type {Record<string, string>} */
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    if (body !== undefined) headers["content-type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, {
        method: body === undefined ? "GET" : "POST",
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError("The server cannot be reached. Is inferd running?", 0);
    }
    if (answer.ok) return answer;
    const reason = await reasonOf(answer);
    const asks = answer.status === 401 && reason.includes("API key");
    if (!asks || (declined && body === undefined) || !(await askForKey(reason))) {
      throw new ApiError(reason, answer.status);
    }
  }
}

/** @param {Response} answer */
async function reasonOf(answer) {
  try {
    const { error } = await answer.json();
    return String(error?.message ?? error);
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

/** @param {string} path @returns {Promise<any>} */
export async function get(path) {
  return (await ask(path)).json();
}

/** The parts of a streamed answer, each up to a separator. Throws ApiError.
 * @param {string} path @param {any} body @param {AbortSignal} signal @param {string} separator */
async function* pieces(path, body, signal, separator) {
  const answer = await ask(path, { body, signal });
  const reader = /** @type {ReadableStream<Uint8Array>} */ (answer.body).getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new ApiError("The connection broke before the answer was complete.", 0);
    }
    rest += decoder.decode(piece.value, { stream: !piece.done });
    const parts = rest.split(separator);
    rest = parts.pop() ?? "";
    yield* parts;
    if (piece.done) throw new ApiError("The answer ended before it was complete.", 0);
  }
}

/** The events of a streamed answer. Throws ApiError also for an error in the stream.
 * @param {string} path @param {any} body @param {AbortSignal} signal */
export async function* events(path, body, signal) {
  for await (const part of pieces(path, body, signal, "\n\n")) {
    if (!part.startsWith("data: ")) continue;
    const data = part.slice(6);
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(String(event.error.message), 0);
    yield event;
  }
}

/** The lines of an answer up to its success. Throws ApiError also for an error in a line.
 * @param {string} path @param {any} body @param {AbortSignal} signal */
export async function* lines(path, body, signal) {
  for await (const part of pieces(path, body, signal, "\n")) {
    const line = JSON.parse(part);
    if (line.error) throw new ApiError(String(line.error), 0);
    yield line;
    if (line.status === "success") return;
  }
}
