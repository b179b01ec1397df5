// What turns the items of one kind of source into a producer's messages.

import type { Message } from "../events.js";

/** Translates one source. `take` is called for each item, and `end` once after the last one. */
export interface Format {
  /** Return the messages of an item. After an `error` nothing more is taken. */
  take(item: unknown): Message[];
  /** Return the messages after the last item. The last one ends the stream. */
  end(): Message[];
}

/** An item of which nothing is known. */
export type Fields = Record<string, any>;

export const fields = (item: unknown): Fields => (typeof item === "object" && item !== null ? (item as Fields) : {});

export const text = (delta: unknown): Message[] =>
  typeof delta === "string" && delta ? [{ type: "text", delta }] : [];

export const reasoning = (delta: unknown): Message[] =>
  typeof delta === "string" && delta ? [{ type: "reasoning", delta }] : [];

export const finish = (reason: string): Message => ({ type: "finish", finish_reason: reason });

export const CUT_OFF = { code: "provider_cut_off", message: "The model provider's answer ended before it was complete." };

/** The end of an answer whose source stopped before it said that it was complete. */
export const cutOff = (): Message => ({ type: "error", ...CUT_OFF });

/** The end of an answer for an error that the provider reported within it. */
export function reported(code: unknown): Message {
  const known = typeof code === "string" && /^[a-z_]{1,64}$/.test(code) ? ` (${code})` : "";
  return { type: "error", code: "provider_error", message: `The model provider reported an error during the answer${known}.` };
}

/** Update running totals. A later report may leave some out. */
export function update(totals: Fields, found: unknown): void {
  for (const [name, count] of Object.entries(fields(found))) if (count != null) totals[name] = count;
}

/** Return a usage message with the counts that are known, or none without any. */
export function usage(counts: Record<string, unknown>): Message[] {
  const known = Object.entries(counts).filter(([, count]) => typeof count === "number" && Number.isFinite(count));
  return known.length ? [{ type: "usage", ...Object.fromEntries(known) }] : [];
}

/** Numbers tool calls 0, 1, 2 … in the order in which they begin, whatever the source's own keys are. */
export class Calls {
  readonly #side: { run_by?: "client" };
  readonly #indices = new Map<unknown, number>();
  readonly #withArguments = new Set<number>();
  count = 0;

  /** `side`: who runs the calls, if the source's kind decides it. Otherwise a result that follows does. */
  constructor(side: { run_by?: "client" } = {}) {
    this.#side = side;
  }

  has(key: unknown): boolean {
    return this.#indices.has(key);
  }

  begin(key: unknown, id: unknown, name: unknown, given: unknown = "", more: object = {}): Message[] {
    const index = this.count++;
    this.#indices.set(key, index);
    const delta = typeof given === "string" ? given : "";
    if (delta) this.#withArguments.add(index);
    const named = { id: typeof id === "string" && id ? id : `call_${index}`, name: typeof name === "string" ? name : "" };
    return [{ type: "tool_call", index, ...named, arguments_delta: delta, ...this.#side, ...more }];
  }

  extend(key: unknown, delta: unknown): Message[] {
    const index = this.#indices.get(key);
    if (index === undefined || typeof delta !== "string" || !delta) return [];
    this.#withArguments.add(index);
    return [{ type: "tool_call", index, arguments_delta: delta }];
  }

  /** Add the whole arguments of a call, unless they came as deltas. */
  complete(key: unknown, whole: unknown): Message[] {
    const index = this.#indices.get(key);
    return index === undefined || this.#withArguments.has(index) ? [] : this.extend(key, whole);
  }
}
