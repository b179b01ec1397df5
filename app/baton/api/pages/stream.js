// One stream, opened: its state and numbers and, for a key that may read, its answer as it arrives.

import { Answer } from "./answer.js";
import { NONE, byId, clock, count, el, isLive, rate, seconds, setText, showState, span } from "./dom.js";
import { Refused, bearer, follow, refusal } from "./follow.js";
import { Tail } from "./scrolling.js";
import { WaitSection } from "./waiting.js";

const FACTS = ["Created", "In the queue", "First token", "Took", "Tokens", "Tokens per second", "Events", "Viewers", "Runs",
  "Attempts", "Interrupted", "Finish reason", "Served by"];

const INTERRUPTIONS = {
  worker_lost: "Its worker was lost",
  worker_left: "Its worker left",
  input: "It waited until an input came",
  deadline: "It waited, and no input came",
};

const words = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");

// Which model of a built-in provider answered, and how many calls failed before; nothing before the end.
function answerFacts(by) {
  if (!by) return {};
  const named = by.model && by.model !== by.name ? `${by.name} (${by.model})` : by.name;
  return { "Answered by": named ?? NONE, "Failed calls": count(by.attempts.length) };
}

// How a stream is written that has no generator; nothing for the others.
function producerFacts(external, now) {
  if (!external) return {};
  const named = external.producer_ids.map((id) => id || "without an id").join(", ");
  const more = external.producers > external.producer_ids.length ? ` and ${count(external.producers - external.producer_ids.length)} more` : "";
  return {
    "Path": external.path ?? NONE,
    "Content": external.kind === "events" ? "Baton's events" : external.content_type,
    "Bytes": count(external.size_bytes),
    "Producers": named ? named + more : NONE,
    "Last sign of life": `${span((now - Date.parse(external.heard_at)) / 1000)} ago`,
  };
}

export class StreamSheet {
  // `session`: {key, scopes}; `onClosed` is called when a person has closed it.
  constructor(session, onClosed) {
    this.session = session;
    this.dialog = byId("stream");
    this.answer = new Answer({ reasoning: byId("part-reasoning"), tools: byId("part-tools"), text: byId("part-text") });
    this.wait = new WaitSection(session);
    this.tail = new Tail(byId("stream-answer"), byId("stream-newest"), this.dialog);
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
    this.seen = {};
    this.cursor = 0;
    setText(byId("stream-id"), id);
    setText(byId("stream-title"), "Stream");
    setText(byId("stream-note"), "");
    byId("stream-state").hidden = true;
    byId("stream-error").hidden = true;
    byId("stream-cancel").hidden = true;
    byId("stream-cancelling").hidden = true;
    this.answer.clear();
    this.wait.clear(id);
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
    setText(byId("stream-note"), "This key sees no such stream. It belongs to another tenant, or was erased.");
  }

  // Shows what a list says about the stream; `perSecond`: its rate just now.
  update(item, now, perSecond) {
    if (item.id !== this.id) return;
    this.item = item;
    const live = isLive(item);
    setText(byId("stream-title"), item.generator);
    byId("stream-state").hidden = false;
    showState(byId("stream-state"), item.status);
    byId("stream-cancel").hidden = !(live && this.session.scopes.includes("cancel") && !item.cancel_requested_at);
    const cancelling = byId("stream-cancelling");
    cancelling.hidden = !(live && item.cancel_requested_at);
    setText(cancelling, "Its generator was asked to stop.");
    if (!live && byId("confirm").open) byId("confirm").close();
    this.#error(item.error);
    this.wait.update(item, live, now);
    const since = (moment) => (moment ? (now - Date.parse(moment)) / 1000 : null);
    const between = (from, to) => (from && to ? (Date.parse(to) - Date.parse(from)) / 1000 : null);
    const timings = item.timings;
    this.#facts({
      "Created": `${new Date(item.created_at).toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${clock(item.created_at)}`,
      "In the queue": seconds(item.started_at ? between(item.created_at, item.started_at) : live ? since(item.created_at) : null),
      "First token": seconds(item.time_to_first_token_seconds),
      "Took": timings ? seconds(timings.duration_seconds) : live && item.started_at ? `${seconds(since(item.started_at))} so far` : NONE,
      "Tokens": timings ? count(timings.tokens) : NONE,
      "Tokens per second": rate(timings ? timings.tokens_per_second : perSecond),
      "Events": count(Math.max(item.events, this.cursor)),
      "Viewers": count(item.viewers),
      "Runs": count(item.run),
      "Attempts": count(item.attempts),
      "Interrupted": item.interruption ? (INTERRUPTIONS[item.interruption] ?? words(item.interruption)) : NONE,
      "Finish reason": item.finish_reason ?? NONE,
      ...answerFacts(item.answered_by),
      ...producerFacts(item.external, now),
      ...Object.fromEntries(Object.entries(item.usage ?? {}).map(([name, value]) => [words(name), count(value)])),
      ...this.seen,
    });
  }

  #facts(facts) {
    const list = byId("stream-facts");
    for (const [name, value] of Object.entries(facts)) {
      if (!this.facts.has(name)) {
        const node = el("dd");
        this.facts.set(name, node);
        list.append(el("div", {}, el("dt", {}, name), node));
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
    entry.parentElement.hidden = !error.doc_url;
    if (error.doc_url) entry.href = error.doc_url;
  }

  #note(facts) {
    Object.assign(this.seen, facts);
    this.#facts(facts);
  }

  async #follow() {
    const note = byId("stream-note");
    if (!this.session.scopes.includes("read")) {
      setText(note, "This key may not read conversations, so the answer is not shown. Use a key with the scopes admin and read.");
      return;
    }
    const following = (this.following = new AbortController());
    const { signal } = following;
    this.tail.start({ pinned: false });
    setText(note, "Connecting …");
    try {
      await follow(`v1/streams/${this.id}/events`, {
        key: this.session.key,
        signal,
        snapshot: true,
        onConnected: ({ pod }) => {
          setText(note, "");
          this.#note({ "Served by": pod });
        },
        onEvent: (seq, event) => {
          this.answer.take(event);
          this.wait.take(seq, event);
          this.cursor = seq;
          this.#facts({ Events: count(seq) });
        },
        onDropped: ({ reason, cursor }) => setText(note, `${reason} Reconnecting after event ${cursor} …`),
      });
      if (!signal.aborted) this.tail.stop();
      if (!signal.aborted && !this.cursor) setText(note, "It has no events.");
    } catch (error) {
      if (signal.aborted) return;
      setText(note, error instanceof Refused ? error.message : `The answer cannot be shown: ${error.message}`);
    }
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
      setText(cancelling, response.status === 202 ? "Its generator was asked to stop." : "It has ended.");
      byId("stream-cancel").hidden = true;
    } catch (error) {
      setText(cancelling, error instanceof Refused ? error.message : "No pod answered, so the stream continues. Try again.");
    }
    byId("stream-close").focus();
  }

  #forget() {
    this.following?.abort();
    this.following = null;
    this.tail.stop();
    this.id = null;
    if (byId("confirm").open) byId("confirm").close();
  }
}
