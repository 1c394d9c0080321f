// @ts-check
// Builds elements. Text stays text: this page never parses HTML.

/** The element of an id, which the page has.
 * @param {string} id @returns {any} */
export function at(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element ${id}`);
  return found;
}

/** A new element with attributes and children; strings become text.
 * @param {string} name @param {Record<string, any>} [given] @param {...(Node | string)} children
 * @returns {any} */
export function make(name, given = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== undefined) element.setAttribute(key, String(value));
  }
  element.append(...children);
  return element;
}

/** A button that copies a text; empty without TLS off loopback, where browsers forbid copying.
 * @param {string} text @param {string} kind @returns {Node | string} */
export function copier(text, kind) {
  if (!navigator.clipboard) return "";
  const button = make("button", { type: "button", class: `quiet ${kind}` }, "Copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

/** Announces a text to screen readers, without showing it. @param {string} text */
export function say(text) {
  at("said").textContent = text;
}

/** A number of bytes as people read it. @param {number | undefined | null} bytes */
export function size(bytes) {
  if (!bytes) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1);
  const value = bytes / 1024 ** step;
  return `${value.toFixed(value < 10 && step ? 1 : 0)} ${units[step]}`;
}

/** A count with a unit of thousands. @param {number | undefined | null} count */
export function short(count) {
  if (!count) return "–";
  if (count >= 1e9) return `${(count / 1e9).toFixed(1)} B`;
  if (count >= 1e6) return `${(count / 1e6).toFixed(0)} M`;
  return count.toLocaleString("en");
}

/** A time. @param {number | null} seconds */
export function time(seconds) {
  if (seconds === null) return "–";
  if (seconds < 0.001) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}
