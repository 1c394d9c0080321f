// @ts-check
// A small plot of the last two minutes: one or two lines over time, drawn as SVG.

import { make } from "./dom.js";

export const KEPT = 120;
const WIDTH = 320;
const HEIGHT = 84;
const SPACE = "http://www.w3.org/2000/svg";

/** @param {string} name @param {Record<string, any>} given */
function shape(name, given) {
  const element = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(given)) element.setAttribute(key, String(value));
  return element;
}

export class Plot {
  /** @param {string} title @param {string[]} names of the lines
   * @param {(value: number) => string} show @param {number} [least] the top of an idle scale */
  constructor(title, names, show, least = 1) {
    this.title = title;
    this.names = names;
    this.show = show;
    this.least = least;
    /** @type {(number | null)[][]} */
    this.lines = names.map(() => []);
    this.now = make("span", { class: "now" }, "–");
    this.top = make("span", { class: "top" });
    this.svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    const legend = names.length < 2 ? [] : names.map((name, at) => make("span", { class: `legend line-${at}` }, name));
    this.element = make(
      "figure",
      { class: "plot" },
      make("figcaption", {}, make("span", {}, title), ...legend, this.now),
      make("div", { class: "canvas" }, this.top, this.svg),
    );
  }

  /** @param {(number | null)[]} values one of each line */
  add(...values) {
    values.forEach((value, at) => {
      this.lines[at].push(value);
      if (this.lines[at].length > KEPT) this.lines[at].shift();
    });
    this.draw();
  }

  draw() {
    const known = this.lines.flat().filter((value) => value !== null);
    const most = Math.max(this.least, ...known);
    const last = this.lines.map((line) => {
      const value = line.findLast((each) => each !== null);
      return value === undefined || value === null ? "–" : this.show(value);
    });
    this.now.textContent = last.join(" / ");
    this.top.textContent = this.show(most);
    const words = this.names.map((name, at) => `${this.names.length > 1 ? `${name} ` : ""}${last[at]} now`);
    const peak = known.length ? `, at most ${this.show(Math.max(...known))} in the last two minutes` : "";
    this.svg.setAttribute("aria-label", `${this.title}: ${words.join(", ")}${peak}`);
    this.svg.replaceChildren(
      ...[0.5, 1].map((at) => shape("path", { class: "grid", d: `M0 ${at * HEIGHT - 0.5}H${WIDTH}` })),
      ...this.lines.flatMap((line, at) => paths(line, at, most)),
    );
  }
}

/** One line and the area under it; a moment without a value is skipped.
 * @param {(number | null)[]} line @param {number} at @param {number} most */
function paths(line, at, most) {
  const step = WIDTH / (KEPT - 1);
  const points = line.flatMap((value, place) => {
    if (value === null) return [];
    const y = HEIGHT - 2 - (value / most) * (HEIGHT - 6);
    return [[(KEPT - line.length + place) * step, y].map((each) => each.toFixed(1))];
  });
  if (!points.length) return [];
  const d = points.length > 1 ? `M${points.map((point) => point.join(" ")).join("L")}` : `M${points[0].join(" ")}h0.1`;
  const area = `${d}V${HEIGHT}H${points[0][0]}Z`;
  const lone = points.length > 1 ? "" : " lone";
  return [shape("path", { class: `area line-${at}`, d: area }), shape("path", { class: `stroke line-${at}${lone}`, d })];
}
