// One stream, opened: how it does, and, for a key that may read, its answer as it comes.

import { NONE, byId, clock, count, el, rate, seconds, setText, showState } from "./dom.js";
import { Refused, bearer, follow, refusal } from "./follow.js";

const FACTS = ["Created", "In the queue", "First token", "Took", "Tokens", "Tokens per second", "Events", "Viewers", "Attempts",
  "Finish reason", "Told by"];

// Whether a tool call's event begins another call than the one of its index so far, as agents do in each step.
const beginsCall = (event, call) => Boolean(event.id) && call.id !== null && event.id !== call.id;

// The answer, its parts set apart.
class Answer {
  constructor() {
    this.parts = { reasoning: byId("reasoning"), text: byId("text") };
    this.tools = byId("tools");
    this.clear();
  }

  clear() {
    this.parts.reasoning.replaceChildren(document.createTextNode(""));
    this.parts.text.replaceChildren(document.createTextNode(""));
    this.tools.replaceChildren();
    this.calls = new Map();
    this.byCallId = new Map();
    for (const part of document.querySelectorAll("#stream-answer .part")) part.hidden = true;
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
      case "reset":
        return this.clear();
      case "snapshot":
        this.clear();
        if (event.reasoning) this.#append("reasoning", event.reasoning);
        if (event.text) this.#append("text", event.text);
        // So far they have no index: what comes of the last of them is told apart by its id.
        (event.tool_calls ?? []).forEach((call, index) => this.#call({ index, ...call, arguments_delta: call.arguments }));
        (event.tool_results ?? []).forEach((result) => this.#result(result));
        (event.tool_approvals ?? []).forEach((approval) => this.#approval(approval));
    }
  }

  #append(kind, delta) {
    this.parts[kind].firstChild.appendData(delta);
    byId(`part-${kind}`).hidden = false;
  }

  #call(event) {
    byId("part-tools").hidden = false;
    let call = this.calls.get(event.index);
    if (!call || beginsCall(event, call)) {
      call = { id: null, arguments: "", name: el("code"), body: el("pre"), node: el("article", { class: "tool" }) };
      call.node.append(el("h4", {}, call.name), call.body);
      this.calls.set(event.index, call);
      this.tools.append(call.node);
    }
    call.id = event.id || call.id;
    if (call.id) this.byCallId.set(call.id, call);
    if (event.name) setText(call.name, event.name);
    call.arguments += event.arguments_delta ?? "";
    setText(call.body, pretty(call.arguments));
  }

  #approval({ id }) {
    byId("part-tools").hidden = false;
    (this.byCallId.get(id)?.node ?? this.tools).append(el("h5", {}, "Waits for the user's approval"));
  }

  #result(event) {
    byId("part-tools").hidden = false;
    const { type, id, ...rest } = event;
    const shown = "content" in rest && Object.keys(rest).length === 1 ? rest.content : rest;
    const node = el("pre", { class: "result" });
    setText(node, typeof shown === "string" ? shown : JSON.stringify(shown, null, 2));
    (this.byCallId.get(id)?.node ?? this.tools).append(el("h5", {}, "Result"), node);
  }
}

const words = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // it is not whole yet
  }
}

export class StreamSheet {
  // `session`: {key, scopes}; `onClosed` is called when a person has closed it.
  constructor(session, onClosed) {
    this.session = session;
    this.dialog = byId("stream");
    this.answer = new Answer();
    this.facts = new Map();
    this.id = null;
    this.dialog.addEventListener("close", () => {
      this.#forget();
      onClosed();
    });
    byId("stream-close").addEventListener("click", () => this.dialog.close());
    byId("stream-cancel").addEventListener("click", () => byId("confirm").showModal());
    byId("confirm-keep").addEventListener("click", () => byId("confirm").close());
    byId("confirm-cancel").addEventListener("click", () => this.#cancel());
  }

  open(id) {
    if (this.id === id) return;
    this.#forget();
    this.id = id;
    this.item = null;
    this.told = {};
    this.cursor = 0;
    setText(byId("stream-id"), id);
    setText(byId("stream-title"), "Stream");
    setText(byId("stream-note"), "");
    byId("stream-state").hidden = true;
    byId("stream-error").hidden = true;
    byId("stream-cancel").hidden = true;
    byId("stream-cancelling").hidden = true;
    this.answer.clear();
    byId("stream-facts").replaceChildren();
    this.facts.clear();
    this.#facts(Object.fromEntries(FACTS.map((name) => [name, NONE])));
    if (!this.dialog.open) this.dialog.showModal();
    byId("stream-close").focus();
    this.#follow();
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }

  missing() {
    setText(byId("stream-note"), "There is no such stream for this key: it belongs to somebody else, or was erased.");
  }

  // Shows what a list says of the stream; `perSecond`: its rate just now.
  update(item, now, perSecond) {
    if (item.id !== this.id) return;
    this.item = item;
    const live = item.status === "queued" || item.status === "running";
    setText(byId("stream-title"), item.generator);
    byId("stream-state").hidden = false;
    showState(byId("stream-state"), item.status);
    byId("stream-cancel").hidden = !(live && this.session.scopes.includes("cancel") && !item.cancel_requested_at);
    const cancelling = byId("stream-cancelling");
    cancelling.hidden = !(live && item.cancel_requested_at);
    setText(cancelling, "Its generator was asked to stop.");
    if (!live && byId("confirm").open) byId("confirm").close();
    this.#error(item.error);
    const since = (moment) => (moment ? (now - Date.parse(moment)) / 1000 : null);
    const between = (from, to) => (from && to ? (Date.parse(to) - Date.parse(from)) / 1000 : null);
    const timings = item.timings;
    this.#facts({
      "Created": `${new Date(item.created_at).toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${clock(item.created_at)}`,
      "In the queue": seconds(item.started_at ? between(item.created_at, item.started_at) : live ? since(item.created_at) : null),
      "First token": seconds(timings?.time_to_first_token_seconds),
      "Took": timings ? seconds(timings.duration_seconds) : live && item.started_at ? `${seconds(since(item.started_at))} so far` : NONE,
      "Tokens": timings ? count(timings.tokens) : NONE,
      "Tokens per second": rate(timings ? timings.tokens_per_second : perSecond),
      "Events": count(Math.max(item.events, this.cursor)),
      "Viewers": count(item.viewers),
      "Attempts": count(item.attempts),
      "Finish reason": item.finish_reason ?? NONE,
      ...Object.fromEntries(Object.entries(item.usage ?? {}).map(([name, value]) => [words(name), count(value)])),
      ...this.told,
    });
  }

  #facts(facts) {
    const list = byId("stream-facts");
    for (const [name, value] of Object.entries(facts)) {
      if (!this.facts.has(name)) {
        const told = el("dd");
        this.facts.set(name, told);
        list.append(el("div", {}, el("dt", {}, name), told));
      }
      setText(this.facts.get(name), value);
    }
  }

  #error(error) {
    byId("stream-error").hidden = !error;
    if (!error) return;
    setText(byId("stream-error-code"), error.code);
    setText(byId("stream-error-message"), error.message ?? "");
    const entry = byId("stream-error-entry");
    entry.parentElement.hidden = !error.entry;
    if (error.entry) entry.href = error.entry;
  }

  #tell(facts) {
    Object.assign(this.told, facts);
    this.#facts(facts);
  }

  async #follow() {
    const note = byId("stream-note");
    if (!this.session.scopes.includes("read")) {
      setText(note, "This key may not read conversations, so the answer is not shown. A key with the scopes admin and read shows it.");
      return;
    }
    const following = (this.following = new AbortController());
    const { signal } = following;
    setText(note, "Connecting …");
    try {
      await follow(`v1/streams/${this.id}/events`, {
        key: this.session.key,
        signal,
        snapshot: true,
        onConnected: ({ pod }) => {
          setText(note, "");
          this.#tell({ "Told by": pod });
        },
        onEvent: (seq, event) => {
          this.#keepAtEnd(() => this.answer.take(event));
          this.cursor = seq;
          this.#facts({ Events: count(seq) });
        },
        onDropped: ({ reason, cursor }) => setText(note, `${reason} It goes on after event ${cursor} in a moment …`),
      });
      if (!signal.aborted && !this.cursor) setText(note, "It has told nothing.");
    } catch (error) {
      if (signal.aborted) return;
      setText(note, error instanceof Refused ? error.message : `The answer cannot be shown: ${error.message}`);
    }
  }

  // Keeps the end of the answer in view for whoever was looking at it, and moves nobody who has scrolled up.
  #keepAtEnd(change) {
    const sheet = this.dialog;
    const atEnd = sheet.scrollTop > 0 && sheet.scrollTop + sheet.clientHeight >= sheet.scrollHeight - 40;
    change();
    if (atEnd) sheet.scrollTop = sheet.scrollHeight;
  }

  async #cancel() {
    byId("confirm").close();
    const cancelling = byId("stream-cancelling");
    cancelling.hidden = false;
    setText(cancelling, "Cancelling …");
    try {
      const headers = bearer(this.session.key);
      const response = await fetch(`v1/streams/${this.id}/cancel`, { method: "POST", headers });
      if (!response.ok) throw await refusal(response);
      setText(cancelling, "Its generator was asked to stop.");
      byId("stream-cancel").hidden = true;
    } catch (error) {
      setText(cancelling, error instanceof Refused ? error.message : "No pod answered, and the stream goes on. Try again.");
    }
    byId("stream-close").focus();
  }

  #forget() {
    this.following?.abort();
    this.following = null;
    this.id = null;
    if (byId("confirm").open) byId("confirm").close();
  }
}
