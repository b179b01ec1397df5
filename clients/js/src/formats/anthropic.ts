// The events of Anthropic's Messages API.

import type { Message } from "../events.js";
import { Calls, type Fields, type Format, cutOff, fields, finish, reasoning, reported, text, update, usage } from "./format.js";

const FINISH_REASONS: Record<string, string> = {
  end_turn: "stop",
  stop_sequence: "stop",
  max_tokens: "length",
  model_context_window_exceeded: "length",
  tool_use: "tool_calls",
  refusal: "content_filter",
};

export class Anthropic implements Format {
  readonly #calls = new Calls({ run_by: "client" });
  readonly #inputs = new Map<number, unknown>(); // of calls that are not complete, by block
  #counts: Fields = {};
  #reason: string | null = null;
  #stopped = false;

  take(item: unknown): Message[] {
    const event = fields(item);
    switch (event.type) {
      case "message_start":
        update(this.#counts, event.message?.usage);
        return [];
      case "content_block_start":
        return this.#block(event.index, fields(event.content_block));
      case "content_block_delta":
        return this.#delta(event.index, fields(event.delta));
      case "content_block_stop":
        return this.#complete(event.index);
      case "message_delta":
        update(this.#counts, event.usage);
        this.#reason = event.delta?.stop_reason ?? this.#reason;
        return [];
      case "message_stop":
        this.#stopped = true;
        return [];
      case "error":
        return [reported(event.error?.type)];
      default:
        return [];
    }
  }

  end(): Message[] {
    if (!this.#stopped) return [...this.#usage(), cutOff()];
    const reason = this.#reason ?? (this.#calls.count ? "tool_use" : "end_turn");
    return [...this.#usage(), finish(FINISH_REASONS[reason] ?? reason)];
  }

  #block(index: number, block: Fields): Message[] {
    if (block.type === "text") return text(block.text);
    if (block.type === "thinking") return reasoning(block.thinking);
    if (block.type !== "tool_use") return [];
    this.#inputs.set(index, block.input);
    return this.#calls.begin(index, block.id, block.name);
  }

  #delta(index: number, delta: Fields): Message[] {
    if (delta.type === "text_delta") return text(delta.text);
    if (delta.type === "thinking_delta") return reasoning(delta.thinking);
    return delta.type === "input_json_delta" ? this.#calls.extend(index, delta.partial_json) : [];
  }

  /** Complete a call. Without arguments it has no delta, and the empty string is not JSON. */
  #complete(index: number): Message[] {
    if (!this.#inputs.has(index)) return [];
    const whole = JSON.stringify(this.#inputs.get(index) ?? {});
    this.#inputs.delete(index);
    return this.#calls.complete(index, whole);
  }

  /** Anthropic's `input_tokens` leaves out the cache's tokens; Baton's has them. */
  #usage(): Message[] {
    const { input_tokens: own, output_tokens: made, cache_read_input_tokens: read, cache_creation_input_tokens: kept } = this.#counts;
    if (typeof own !== "number" && typeof made !== "number") return [];
    const sent = (own ?? 0) + (read ?? 0) + (kept ?? 0);
    const total = sent + (made ?? 0);
    return usage({ input_tokens: sent, output_tokens: made, total_tokens: total, cached_tokens: read, cache_write_tokens: kept });
  }
}
