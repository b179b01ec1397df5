// DOM nodes for the tokens of Markdown.
//
// The text comes from models, so nothing in it becomes markup: `marked` only splits it into tokens, and nodes are built
// here, from a fixed list of elements. Raw HTML is shown as text. A link is kept if it is absolute and its scheme is
// safe. An image becomes a link: loading it would reveal to its server that the page is read, and whatever its URL holds.

import { el } from "./dom.js";

// Represents a mark in the text. It counts as punctuation, so that emphasis can end before it.
export const MARK = "\u2e4b";

const SAFE_SCHEMES = new Set(["http:", "https:", "mailto:"]);
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": "\u00a0" };
// The page has an `h1` and an `h2` of its own.
const HEADINGS_BELOW = 2;
const LOWEST_HEADING = 6;
// Deeper nesting is shown as plain text: browsers fail on trees of thousands of levels.
const DEEPEST = 24;

export class Nodes {
  // `label` returns the label of the next mark.
  constructor(label) {
    this.label = label;
    this.depth = 0;
  }

  block(token) {
    switch (token.type) {
      case "space":
      case "def":
        return document.createTextNode("");
      case "heading":
        return el(`h${Math.min(LOWEST_HEADING, token.depth + HEADINGS_BELOW)}`, {}, ...this.inline(token.tokens));
      case "paragraph":
        return el("p", {}, ...this.inline(token.tokens));
      case "code":
        return el("pre", { tabindex: "0" }, el("code", {}, ...this.text(token.text)));
      case "blockquote":
        return el("blockquote", {}, ...this.blocks(token.tokens));
      case "list":
        return this.list(token);
      case "table":
        return this.table(token);
      case "hr":
        return el("hr");
      case "text":
        return el("span", {}, ...(token.tokens ? this.inline(token.tokens) : this.text(token.text)));
      default:
        return el("p", { class: "plain" }, ...this.text(token.raw));
    }
  }

  blocks(tokens) {
    return this.nested(tokens, (token) => [this.block(token)]);
  }

  list(token) {
    const items = token.items.map((item) => el("li", {}, ...this.blocks(item.tokens)));
    return token.ordered ? el("ol", { start: String(token.start || 1) }, ...items) : el("ul", {}, ...items);
  }

  table(token) {
    const cell = (tag) => (item) => el(tag, { class: item.align === "right" ? "number" : null }, ...this.inline(item.tokens));
    const head = el("tr", {}, ...token.header.map(cell("th")));
    const rows = token.rows.map((row) => el("tr", {}, ...row.map(cell("td"))));
    return el("div", { class: "scroll", tabindex: "0" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
  }

  inline(tokens) {
    return this.nested(tokens, (token) => this.span(token));
  }

  nested(tokens, make) {
    if (this.depth === DEEPEST) return tokens.flatMap((token) => this.text(token.raw));
    this.depth += 1;
    const nodes = tokens.flatMap(make);
    this.depth -= 1;
    return nodes;
  }

  span(token) {
    switch (token.type) {
      case "strong":
      case "em":
      case "del":
        return [el(token.type, {}, ...this.inline(token.tokens))];
      case "codespan":
        return [el("code", {}, ...this.text(token.text))];
      case "br":
        return [el("br")];
      case "link":
        return [link(token.href, this.inline(token.tokens))];
      case "image":
        return [link(token.href, this.text(`Image: ${token.text || token.href}`))];
      case "checkbox":
        return this.text(token.checked ? "☑ " : "☐ ");
      case "html":
        return this.text(token.raw);
      case "text":
      case "escape":
        return token.tokens ? this.inline(token.tokens) : this.text(decoded(token.text));
      default:
        return this.text(token.raw);
    }
  }

  // Text nodes, and between them the marks.
  text(text) {
    const [first, ...rest] = text.split(MARK);
    return [document.createTextNode(first), ...rest.flatMap((part) => [this.seam(), document.createTextNode(part)])];
  }

  seam() {
    return el("span", { class: "seam" }, this.label());
  }
}

const decoded = (text) => text.replace(/&(?:amp|lt|gt|quot|#39|nbsp);/g, (entity) => ENTITIES[entity]);

// A link, or only what it would show if it leads to anything but another page.
function link(href, children) {
  const address = URL.canParse(href) ? new URL(href) : null;
  if (!SAFE_SCHEMES.has(address?.protocol)) return el("span", {}, ...children);
  const found = { href: address.href, title: address.href, target: "_blank", rel: "noopener noreferrer nofollow" };
  const node = el("a", found, ...children);
  for (const inner of node.querySelectorAll("a")) inner.replaceWith(...inner.childNodes); // an image's
  return node;
}
