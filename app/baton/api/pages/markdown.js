// Shows Markdown as DOM nodes while it arrives.
//
// A block is final once another one follows it. Only the open block is parsed again when text arrives, and its nodes are
// changed in place, so that a selection stays and nothing flickers.

import { el } from "./dom.js";
import { Lexer } from "./marked.js";
import { MARK, Nodes } from "./markdown_nodes.js";

// Parsing takes at most about this part of the time, however long the open block is.
const BUSY_PART = 0.1;
const FRAME_MILLISECONDS = 16;
// Emphasis takes quadratic time to parse, so a paragraph that is longer than any real one is shown as it is.
const LONGEST_PARAGRAPH = 20_000;
// A mark between two words of prose breaks no syntax.
const BETWEEN_WORDS = /(?<=\p{L}\p{N}*[.,;:!?]?) (?=\p{L})/gu;

export class Markdown {
  #node;
  #onDrawn;
  #tail; // the text of the blocks that are not final
  #open; // their nodes
  #labels; // of all marks, in their order
  #finalLabels; // how many of them are in final blocks
  #pending; // {label, from}: a mark that has no place yet
  #timer = null;
  #cost = 0;

  // `onDrawn` is called after each change of the nodes.
  constructor(node, onDrawn = () => {}) {
    this.#node = node;
    this.#onDrawn = onDrawn;
    this.clear();
  }

  clear() {
    clearTimeout(this.#timer);
    this.#timer = this.#pending = null;
    this.#tail = "";
    this.#open = [];
    this.#labels = [];
    this.#finalLabels = 0;
    this.#node.replaceChildren();
  }

  append(delta) {
    this.#tail += delta.replaceAll("\r", "").replaceAll(MARK, "");
    this.#timer ??= setTimeout(() => this.draw(), Math.max(FRAME_MILLISECONDS, this.#cost / BUSY_PART));
  }

  // Shows a label at the next place between two words.
  mark(label) {
    this.#pending = { label, from: this.#tail.length };
  }

  // Draws what has arrived, without waiting.
  draw() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const began = performance.now();
    this.#placeMark();
    const { final, open } = split(parse(this.#tail));
    let place = this.#finalLabels;
    const nodes = new Nodes(() => this.#labels[place++] ?? "");
    const finalNodes = final.map((token) => nodes.block(token));
    this.#finalLabels = place;
    const shown = this.#show([...finalNodes, ...open.map((token) => nodes.block(token))]);
    this.#open = shown.slice(final.length);
    this.#forget(final.reduce((sum, token) => sum + token.raw.length, 0));
    this.#cost = performance.now() - began;
    this.#onDrawn();
  }

  // Draws all of it; a mark that found no place follows the last block.
  finish() {
    this.draw();
    if (!this.#pending) return;
    this.#node.append(el("p", {}, el("span", { class: "seam" }, this.#pending.label)));
    this.#pending = null;
  }

  #placeMark() {
    if (!this.#pending) return;
    BETWEEN_WORDS.lastIndex = this.#pending.from;
    const found = BETWEEN_WORDS.exec(this.#tail);
    if (!found) return;
    this.#tail = `${this.#tail.slice(0, found.index)}${MARK}${this.#tail.slice(found.index)}`;
    this.#labels.push(this.#pending.label);
    this.#pending = null;
  }

  // Puts nodes in the place of those of the open blocks; returns which ones are in the page now.
  #show(nodes) {
    const shown = nodes.map((node, index) => (this.#open[index] ? patch(this.#open[index], node) : this.#node.appendChild(node)));
    for (const old of this.#open.slice(nodes.length)) old.remove();
    return shown;
  }

  #forget(length) {
    this.#tail = this.#tail.slice(length);
    if (this.#pending) this.#pending.from = Math.max(0, this.#pending.from - length);
  }
}

// The top-level blocks of a text. A paragraph that is nested too deeply to be parsed is plain text.
function parse(text) {
  try {
    return tokensOf(text);
  } catch {
    return text.split(/(?<=\n\n)/).flatMap((part) => {
      try {
        return tokensOf(part);
      } catch {
        return [{ type: "plain", raw: part }];
      }
    });
  }
}

function tokensOf(text) {
  const lexer = new Lexer();
  lexer.blockTokens(text, lexer.tokens);
  for (const { src, tokens } of lexer.inlineQueue) {
    if (src.length > LONGEST_PARAGRAPH) tokens.push({ type: "text", raw: src, text: src });
    else lexer.inlineTokens(src, tokens);
  }
  return lexer.tokens;
}

// The last block may continue, also after blank lines.
function split(tokens) {
  const last = tokens.findLastIndex((token) => token.type !== "space");
  return { final: tokens.slice(0, Math.max(0, last)), open: tokens.slice(Math.max(0, last)) };
}

// Makes a node of the page like a new one, with as few changes as needed; returns the one that is in the page.
function patch(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE && fresh.nodeType === Node.TEXT_NODE) {
    if (fresh.data.startsWith(old.data)) old.appendData(fresh.data.slice(old.data.length));
    else old.data = fresh.data;
    return old;
  }
  if (!old.cloneNode(false).isEqualNode(fresh.cloneNode(false))) {
    old.replaceWith(fresh);
    return fresh;
  }
  const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
  after.forEach((child, index) => (before[index] ? patch(before[index], child) : old.append(child)));
  for (const child of before.slice(after.length)) child.remove();
  return old;
}
