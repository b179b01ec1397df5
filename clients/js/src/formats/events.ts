// Baton's own events, and strings, which are text: what a Python generator yields, too.

import type { Message } from "../events.js";
import { type Format, fields, finish, text } from "./format.js";

export const TYPES = new Set(["text", "reasoning", "tool_call", "tool_result", "tool_approval", "usage", "custom", "finish"]);

export class Events implements Format {
  #end: Message = finish("stop");

  take(item: unknown): Message[] {
    if (typeof item === "string") return text(item);
    const message = fields(item) as Message;
    if (message.type !== "finish") return [message];
    this.#end = message; // what follows still counts
    return [];
  }

  end(): Message[] {
    return [this.#end];
  }
}
