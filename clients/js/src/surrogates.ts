// Characters that a source cuts in two: JSON can carry half of one, a log in UTF-8 cannot.

import type { Message } from "./events.js";

const ENDS_HALF = /[\uD800-\uDBFF]$/;

/** Moves the first half of a character to the next delta of the same type, where its second half is. */
export class Surrogates {
  readonly #held = new Map<string, string>();

  /** Return the message with whole characters; null if nothing of it is left. */
  join(message: Message): Message | null {
    if (message.type !== "text" && message.type !== "reasoning") return message;
    const delta = (this.#held.get(message.type) ?? "") + message.delta;
    const half = ENDS_HALF.exec(delta)?.[0] ?? "";
    this.#held.set(message.type, half);
    const whole = half ? delta.slice(0, -1) : delta;
    return whole ? { ...message, delta: whole } : null;
  }
}
