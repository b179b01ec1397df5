// The events of OpenAI's Responses.

import type { Message } from "../events.js";
import { Calls, type Fields, type Format, cutOff, fields, finish, reasoning, reported, text, usage } from "./format.js";

const CALLS = new Set(["function_call", "custom_tool_call"]);

export class OpenAiResponses implements Format {
  readonly #calls = new Calls({ run_by: "client" });
  #reason: string | null = null;

  take(item: unknown): Message[] {
    const event = fields(item);
    switch (event.type) {
      case "response.output_text.delta":
      case "response.refusal.delta":
        return text(event.delta);
      case "response.reasoning_text.delta":
      case "response.reasoning_summary_text.delta":
        return reasoning(event.delta);
      case "response.reasoning_summary_part.added":
        return event.summary_index ? reasoning("\n\n") : [];
      case "response.output_item.added":
        return this.#begin(event);
      case "response.function_call_arguments.delta":
      case "response.custom_tool_call_input.delta":
        return this.#calls.extend(event.output_index, event.delta);
      case "response.output_item.done":
        return this.#complete(event);
      case "response.completed":
      case "response.incomplete":
        return this.#end(event);
      case "response.failed":
        return [...counts(event), reported(event.response?.error?.code)];
      case "error":
        return [reported(event.code)];
      default:
        return [];
    }
  }

  end(): Message[] {
    return [this.#reason === null ? cutOff() : finish(this.#reason)];
  }

  #begin({ item, output_index: place }: Fields): Message[] {
    if (!CALLS.has(item?.type) || this.#calls.has(place)) return [];
    return this.#calls.begin(place, item.call_id ?? item.id, item.name, item.arguments ?? item.input);
  }

  #complete(event: Fields): Message[] {
    if (!CALLS.has(event.item?.type)) return [];
    return [...this.#begin(event), ...this.#calls.complete(event.output_index, event.item.arguments ?? event.item.input)];
  }

  #end(event: Fields): Message[] {
    const reason = event.response?.incomplete_details?.reason;
    if (reason) this.#reason = reason === "max_output_tokens" ? "length" : String(reason);
    else if (event.type === "response.incomplete") this.#reason = "length";
    else this.#reason = this.#calls.count ? "tool_calls" : "stop";
    return counts(event);
  }
}

function counts(event: Fields): Message[] {
  const { input_tokens_details: input, output_tokens_details: output, ...total } = fields(event.response?.usage);
  return usage({
    input_tokens: total.input_tokens,
    output_tokens: total.output_tokens,
    total_tokens: total.total_tokens,
    cached_tokens: input?.cached_tokens,
    reasoning_tokens: output?.reasoning_tokens,
  });
}
