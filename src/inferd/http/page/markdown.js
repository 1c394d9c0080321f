// @ts-check
// Markdown as elements. The elements are built node by node from text, so text of a model is never parsed as
// HTML. Pictures become links: the page loads nothing from elsewhere.

import { copier, make } from "./dom.js";

// The patterns read lines of any length that a model wrote, so each takes only one pass over its line.
const FENCE = /^ {0,3}(```+|~~~+)([^`]*)$/;
const HEADING = /^(#{1,6})[ \t](.*)$/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])[ \t]+(.*)$/;
const SAFE = /^(?:https?:\/\/|mailto:)/i;
const DEEPEST = 6;

/** Shows text as Markdown in an element; blocks that have not changed keep their nodes.
 * @param {HTMLElement & {blocks?: string[]}} element @param {string} text */
export function show(element, text) {
  const before = element.blocks ?? [];
  const now = blocks(text.split("\n"));
  let same = 0;
  while (same < before.length && same < now.length && before[same] === now[same]) same += 1;
  while (element.childNodes.length > same) element.lastChild?.remove();
  for (const source of now.slice(same)) element.append(block(source.split("\n"), 0));
  element.blocks = now;
}

/** The sources of the blocks. @param {string[]} lines @returns {string[]} */
function blocks(lines) {
  const found = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const end = endOf(lines, at);
    found.push(lines.slice(at, end).join("\n"));
    at = end;
  }
  return found;
}

/** The end of the block that begins at a line. @param {string[]} lines @param {number} at */
function endOf(lines, at) {
  const fence = FENCE.exec(lines[at]);
  let end = at + 1;
  if (fence) {
    while (end < lines.length && !closes(lines[end], fence[1])) end += 1;
    return Math.min(end + 1, lines.length);
  }
  if (HEADING.test(lines[at]) || isRule(lines[at])) return end;
  if (ITEM.test(lines[at])) {
    for (; end < lines.length; end += 1) {
      const line = lines[end];
      const goesOn = ITEM.test(line) || /^\s{2,}\S/.test(line) || (line.trim() !== "" && lines[end - 1].trim() !== "");
      if (!line.trim() ? !/^\s{2,}\S/.test(lines[end + 1] ?? "") && !ITEM.test(lines[end + 1] ?? "") : !goesOn) break;
    }
    return end;
  }
  while (end < lines.length && lines[end].trim() && !begins(lines[end])) end += 1;
  return end;
}

/** @param {string} line @param {string} fence */
function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length);
}

/** Whether a line is a rule: ---, *** or ___. @param {string} line */
function isRule(line) {
  return /^(?:-{3,}|\*{3,}|_{3,})$/.test(line.replaceAll(" ", ""));
}

/** Whether a line separates a table's head from its rows. @param {string} line */
function isRuled(line) {
  return cells(line).every((cell) => /^:?-+:?$/.test(cell));
}

/** Whether a line ends a paragraph before it. @param {string} line */
function begins(line) {
  return FENCE.test(line) || HEADING.test(line) || isRule(line) || /^\s*[-*+]\s+\S/.test(line);
}

/** @param {string[]} lines @param {number} depth @returns {Node} */
function block(lines, depth) {
  const first = lines[0];
  const fence = FENCE.exec(first);
  if (fence) return code(lines, fence);
  const heading = HEADING.exec(first);
  // The first level of headings belongs to the page.
  if (heading) return make(`h${Math.min(heading[1].length + 1, 6)}`, {}, ...inline(heading[2].trim()));
  if (isRule(first)) return make("hr");
  if (ITEM.test(first)) return list(lines, depth);
  if (first.startsWith(">") && depth < DEEPEST) {
    return make("blockquote", {}, ...within(lines.map((line) => line.replace(/^>\s?/, "")), depth));
  }
  if (lines.length > 1 && first.includes("|") && isRuled(lines[1])) return table(lines);
  return make("p", {}, ...inline(lines.join("\n")));
}

/** @param {string[]} lines @param {number} depth */
function within(lines, depth) {
  return blocks(lines).map((source) => block(source.split("\n"), depth + 1));
}

/** @param {string[]} lines @param {RegExpExecArray} fence */
function code(lines, fence) {
  const closed = lines.length > 1 && closes(lines[lines.length - 1], fence[1]);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const head = make("div", { class: "code-head" }, make("span", {}, fence[2].trim() || "text"), copier(text, "copy"));
  const body = make("pre", { tabindex: "0" }, make("code", {}, text));
  return make("div", { class: "code" }, head, body);
}

/** @param {string[]} lines @param {number} depth */
function list(lines, depth) {
  const first = /** @type {RegExpExecArray} */ (ITEM.exec(lines[0]));
  const ordered = /\d/.test(first[2]);
  const start = ordered ? parseInt(first[2], 10) : 1;
  const made = make(ordered ? "ol" : "ul", ordered && start !== 1 ? { start } : {});
  /** @type {string[][]} */
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= first[1].length + 1) items.push([item[3]]);
    else items[items.length - 1].push(line.replace(/^(?: {1,4}|\t)/, ""));
  }
  for (const [text, ...rest] of items) {
    const split = rest.findIndex((line) => !line.trim() || ITEM.test(line) || FENCE.test(line));
    const own = [text, ...(split < 0 ? rest : rest.slice(0, split))].join("\n");
    const below = split < 0 || depth >= DEEPEST ? [] : within(rest.slice(split), depth);
    made.append(make("li", {}, ...inline(own), ...below));
  }
  return made;
}

/** @param {string} line */
function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

/** @param {string[]} lines */
function table(lines) {
  const head = make("tr", {}, ...cells(lines[0]).map((cell) => make("th", { scope: "col" }, ...inline(cell))));
  const rows = lines.slice(2).map((line) => make("tr", {}, ...cells(line).map((cell) => make("td", {}, ...inline(cell)))));
  return make("div", { class: "scroll", tabindex: "0" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

const MARKS = /** @type {const} */ ([
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
]);

/** Text with its emphasis, code and links. @param {string} text @param {number} [depth] @returns {Node[]} */
function inline(text, depth = 0) {
  /** @type {Node[]} */
  const nodes = [];
  let plain = "";
  const put = (/** @type {Node} */ node) => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
    nodes.push(node);
  };
  for (let at = 0; at < text.length; ) {
    const found = special(text, at, depth);
    if (!found) {
      plain += text[at];
      at += 1;
    } else {
      if (typeof found.node === "string") plain += found.node;
      else put(found.node);
      at = found.end;
    }
  }
  if (plain) nodes.push(document.createTextNode(plain));
  return nodes;
}

/** The element that begins at a position; null for a plain character.
 * @param {string} text @param {number} at @param {number} depth
 * @returns {{node: Node | string, end: number} | null} */
function special(text, at, depth) {
  const char = text[at];
  if (char === "\\" && /[\\`*_~[\]()#|>!-]/.test(text[at + 1] ?? "")) return { node: text[at + 1], end: at + 2 };
  if (char === "`") {
    let ticks = 1;
    while (text[at + ticks] === "`") ticks += 1;
    const mark = "`".repeat(ticks);
    const end = text.indexOf(mark, at + ticks);
    if (end < 0) return { node: mark, end: at + ticks };
    return { node: make("code", {}, text.slice(at + ticks, end).trim()), end: end + ticks };
  }
  if (char === "[" || (char === "!" && text[at + 1] === "[")) return link(text, at + (char === "!" ? 1 : 0), depth);
  if (char === "h" && /^https?:\/\//.test(text.slice(at, at + 8)) && !/\w/.test(text[at - 1] ?? "")) {
    const url = (/^[^\s<>"`]{8,2000}/.exec(text.slice(at, at + 2000)) ?? [""])[0].replace(/[.,;:!?)\]'*_]+$/, "");
    return url.length > 8 ? { node: anchor(url, [document.createTextNode(url)]), end: at + url.length } : null;
  }
  if (depth >= DEEPEST) return null;
  for (const [mark, name] of MARKS) {
    if (!text.startsWith(mark, at)) continue;
    const from = at + mark.length;
    // Not inside a word, as in snake_case, nor around blanks, as in 2 * 3.
    if (/\s/.test(text[from] ?? " ") || (mark[0] === "_" && /\w/.test(text[at - 1] ?? ""))) continue;
    const end = text.indexOf(mark, from + 1);
    if (end < 0 || /\s/.test(text[end - 1]) || (mark.length === 1 && text[end + 1] === mark)) continue;
    if (mark[0] === "_" && /\w/.test(text[end + mark.length] ?? "")) continue;
    return { node: make(name, {}, ...inline(text.slice(from, end), depth + 1)), end: end + mark.length };
  }
  return null;
}

/** @param {string} text @param {number} at @param {number} depth */
function link(text, at, depth) {
  const close = text.indexOf("](", at);
  const end = close < 0 ? -1 : text.indexOf(")", close);
  const url = text.slice(close + 2, end).trim().split(/\s/)[0];
  if (end < 0 || close - at > 1000 || text.slice(at, close).includes("\n\n") || !SAFE.test(url)) return null;
  const label = text.slice(at + 1, close);
  return { node: anchor(url, depth < DEEPEST ? inline(label, DEEPEST) : [document.createTextNode(label)]), end: end + 1 };
}

/** @param {string} url @param {Node[]} label */
function anchor(url, label) {
  return make("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, ...label);
}
