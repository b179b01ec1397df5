// What an opened stream waits for, and what a person sends to it: an approval for each call, or any input.

import { byId, clock, el, setText, span } from "./dom.js";
import { Refused, bearer, refusal } from "./follow.js";

const LATER = "No pod answered, so it is not known whether it was sent. Try again.";

// What a person has typed: JSON, or else a text.
export function dataOf(typed) {
  try {
    return JSON.parse(typed);
  } catch {
    return typed;
  }
}

// The calls of a wait for approvals; null for another wait.
export function callsOf(reason) {
  const calls = reason?.type === "approval" ? reason.calls : null;
  return Array.isArray(calls) && calls.every((id) => typeof id === "string") ? calls : null;
}

function timesOf({ since, until }, now) {
  const left = (Date.parse(until) - now) / 1000;
  const day = new Date(until).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  const ends = left > 0 ? `until ${day}, ${clock(until)} (in ${span(left)})` : "its time is over";
  return `For ${span((now - Date.parse(since)) / 1000)} so far; ${ends}.`;
}

export class WaitSection {
  // `session`: {key, scopes}
  constructor(session) {
    this.session = session;
    this.clear();
    byId("input-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#sendTyped();
    });
  }

  clear(id = null) {
    this.id = id;
    this.wait = null; // {for, seq} of the event, if this key may read it
    this.shown = undefined;
    for (const name of ["stream-wait", "input-form"]) byId(name).hidden = true;
    byId("input-data").value = "";
    setText(byId("input-note"), "");
  }

  // Takes an event of the stream.
  take(seq, event) {
    if (event.type === "waiting") this.wait = { for: event.for, seq };
    else if (event.type === "snapshot") this.wait = event.waiting ? { for: event.waiting.for, seq } : null;
    else if (["resumed", "reset", "done"].includes(event.type)) this.wait = null;
  }

  // Shows what a list says about the stream.
  update(item, live, now) {
    const sends = this.session.scopes.includes("input");
    byId("input-form").hidden = !(live && sends);
    // An input has queued it again, but more of the calls may need an answer.
    const shows = live && (item.waiting || this.wait);
    byId("stream-wait").hidden = !shows;
    if (!shows) this.shown = undefined;
    else {
      setText(byId("wait-times"), item.waiting ? timesOf(item.waiting, now) : "An input came. It continues as soon as a worker takes it.");
      this.#showReason(sends);
    }
  }

  #showReason(sends) {
    const key = this.wait ? this.wait.seq : null;
    if (this.shown === key) return;
    this.shown = key;
    const calls = this.wait && callsOf(this.wait.for);
    setText(byId("wait-title"), calls ? "It waits for approval" : "It waits for an input");
    byId("wait-for").hidden = !this.wait || Boolean(calls) || this.wait.for === null;
    setText(byId("wait-for"), this.wait ? JSON.stringify(this.wait.for, null, 2) : "");
    byId("wait-calls").replaceChildren(...(calls ?? []).map((id) => this.#call(id, sends)));
  }

  #call(id, sends) {
    const note = el("span", { role: "status" });
    const answer = (label, approved) => el("button", { onclick: () => this.#answer(id, approved, row, note) }, label);
    const buttons = sends ? [answer("Approve", true), answer("Deny", false)] : [];
    const row = el("li", {}, el("code", {}, id), ...buttons, note);
    return row;
  }

  // Of two people who answer one call, the second learns that it was answered.
  async #answer(id, approved, row, note) {
    const buttons = [...row.querySelectorAll("button")];
    for (const button of buttons) button.disabled = true;
    const data = { type: "approval", call_id: id, approved, reason: null };
    try {
      await this.#send(data, `console-${this.wait.seq}-${encodeURIComponent(id)}`);
      setText(note, approved ? "Approved." : "Denied.");
    } catch (error) {
      const answered = error instanceof Refused && error.code === "idempotency_conflict";
      for (const button of buttons) button.disabled = answered;
      setText(note, answered ? "Somebody has answered it differently." : messageOf(error));
    }
  }

  async #sendTyped() {
    const field = byId("input-data");
    const typed = field.value.trim();
    const data = dataOf(typed);
    if (!typed || data === null) return setText(byId("input-note"), "Type JSON other than null, or a text.");
    setText(byId("input-note"), "Sending …");
    try {
      const number = await this.#send(data);
      if (field.value.trim() === typed) field.value = "";
      setText(byId("input-note"), `Sent as input ${number}.`);
    } catch (error) {
      setText(byId("input-note"), messageOf(error));
    }
  }

  async #send(data, key = null) {
    const headers = { ...bearer(this.session.key), "content-type": "application/json", ...(key && key.length < 256 && { "idempotency-key": key }) };
    const response = await fetch(`v1/streams/${this.id}/inputs`, { method: "POST", headers, body: JSON.stringify({ data }) });
    if (!response.ok) throw await refusal(response);
    return (await response.json()).number;
  }
}

const messageOf = (error) => (error instanceof Refused ? error.message : LATER);
