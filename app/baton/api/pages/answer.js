// An answer on a page: its reasoning, its tool calls with their results, and its text, each in a section of its own.

import { el, setText } from "./dom.js";
import { Markdown } from "./markdown.js";

// Whether an event begins another call than the one of its index so far. Agents use an index again in each step.
const beginsCall = (event, call) => Boolean(event.id) && call.id !== null && event.id !== call.id;

export class Answer {
  #sections;
  #texts;
  #tools;
  #calls = new Map(); // by their index, the newest of each
  #callsById = new Map();
  #label = null;

  // The sections begin hidden, and their last children are filled. `onDrawn` is called after each change.
  constructor({ reasoning, tools, text }, onDrawn) {
    this.#sections = { reasoning, tools, text };
    this.#texts = {
      reasoning: new Markdown(reasoning.lastElementChild, onDrawn),
      text: new Markdown(text.lastElementChild, onDrawn),
    };
    this.#tools = tools.lastElementChild;
  }

  clear() {
    for (const section of Object.values(this.#sections)) section.hidden = true;
    for (const markdown of Object.values(this.#texts)) markdown.clear();
    this.#tools.replaceChildren();
    this.#calls.clear();
    this.#callsById.clear();
    this.#label = null;
  }

  // Shows a label where the text continues.
  mark(label) {
    this.#label = label;
  }

  take(event) {
    switch (event.type) {
      case "text":
      case "reasoning":
        return this.#append(event.type, event.delta);
      case "tool_call":
        return this.#call(event);
      case "tool_result":
        return this.#result(event);
      case "tool_approval":
        return this.#approval(event);
      case "resumed":
        return this.mark(["input", "deadline"].includes(event.reason) ? "it waited here" : "another worker from here");
      case "reset":
        return this.clear();
      case "snapshot":
        return this.#snapshot(event);
      case "done":
        return Object.values(this.#texts).forEach((markdown) => markdown.finish());
    }
  }

  #append(kind, delta) {
    const markdown = this.#texts[kind];
    if (this.#label) markdown.mark(this.#label);
    this.#label = null;
    markdown.append(delta);
    this.#sections[kind].hidden = false;
  }

  #call(event) {
    let call = this.#calls.get(event.index);
    if (!call || beginsCall(event, call)) {
      call = { id: null, arguments: "", name: el("code"), body: el("pre", { tabindex: "0" }) };
      call.node = el("article", { class: "tool" }, el("h4", {}, call.name), call.body);
      this.#calls.set(event.index, call);
      this.#addTool(call.node);
    }
    call.id = event.id || call.id;
    if (call.id) this.#callsById.set(call.id, call);
    if (event.name) setText(call.name, event.name);
    call.arguments += event.arguments_delta ?? "";
    setText(call.body, pretty(call.arguments));
  }

  #approval({ id }) {
    this.#addTool(el("h5", {}, "Waiting for the user's approval"), id);
  }

  #result({ type, id, ...rest }) {
    const [name, ...others] = Object.keys(rest);
    const shown = !others.length && (name === "content" || name === "result") ? rest[name] : rest;
    const node = el("pre", { tabindex: "0" });
    setText(node, typeof shown === "string" ? shown : JSON.stringify(shown, null, 2));
    this.#addTool(el("h5", {}, "Result"), id);
    this.#addTool(node, id);
  }

  #addTool(node, id) {
    this.#sections.tools.hidden = false;
    (this.#callsById.get(id)?.node ?? this.#tools).append(node);
  }

  #snapshot(event) {
    this.clear();
    if (event.reasoning) this.#append("reasoning", event.reasoning);
    if (event.text) this.#append("text", event.text);
    // They have no index here. What continues the last of them is recognized by its id.
    (event.tool_calls ?? []).forEach((call, index) => this.#call({ index, ...call, arguments_delta: call.arguments }));
    (event.tool_results ?? []).forEach((result) => this.#result(result));
    (event.tool_approvals ?? []).forEach((approval) => this.#approval(approval));
  }
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // it is not whole yet
  }
}
