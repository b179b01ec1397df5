// The chunks of OpenAI's Chat Completions, as OpenAI's server and the many compatible ones send them.

import type { Message } from "../events.js";
import { Calls, type Fields, type Format, cutOff, fields, finish, reasoning, reported, text, update, usage } from "./format.js";

const FINISH_REASONS: Record<string, string> = {
  function_call: "tool_calls",
  tool_use: "tool_calls",
  end_turn: "stop",
  eos: "stop",
  max_tokens: "length",
};

export class OpenAiChat implements Format {
  readonly #calls = new Calls({ run_by: "client" });
  readonly #ids = new Map<number, unknown>(); // of the newest call, by its place
  #reason: string | null = null;
  #counts: Fields = {};

  take(item: unknown): Message[] {
    const chunk = fields(item);
    if (chunk.error) return [reported(chunk.error.code ?? chunk.error.type)];
    update(this.#counts, chunk.usage);
    const choice = (chunk.choices ?? []).find((found: Fields) => (found.index ?? 0) === 0);
    if (!choice) return [];
    const messages = this.#delta(fields(choice.delta));
    if (choice.finish_reason === "error") return [...messages, reported(choice.error?.code)];
    if (choice.finish_reason) this.#reason = FINISH_REASONS[choice.finish_reason] ?? String(choice.finish_reason);
    return messages;
  }

  end(): Message[] {
    if (this.#reason === null) return [...this.#usage(), cutOff()];
    return [...this.#usage(), finish(this.#reason === "stop" && this.#calls.count ? "tool_calls" : this.#reason)];
  }

  /** Return the usage, which comes after the finish reason. */
  #usage(): Message[] {
    const { prompt_tokens_details: input, completion_tokens_details: output } = this.#counts;
    return usage({
      input_tokens: this.#counts.prompt_tokens,
      output_tokens: this.#counts.completion_tokens,
      total_tokens: this.#counts.total_tokens,
      cached_tokens: input?.cached_tokens,
      reasoning_tokens: output?.reasoning_tokens,
    });
  }

  #delta(delta: Fields): Message[] {
    return [
      ...reasoning(delta.reasoning_content ?? delta.reasoning),
      ...text(delta.content),
      ...text(delta.refusal),
      ...(delta.tool_calls ?? []).flatMap((call: Fields, place: number) => this.#call(call, call.index ?? place)),
    ];
  }

  /** Some servers number the calls of each message from 0 again: another id begins another call. */
  #call({ id, function: called, custom }: Fields, place: number): Message[] {
    const [name, given] = [called?.name ?? custom?.name, called?.arguments ?? custom?.input];
    const known = this.#ids.get(place);
    if (known !== undefined && (!id || id === known)) return this.#calls.extend(known, given);
    const key = id ?? `place ${place}`;
    this.#ids.set(place, key);
    return this.#calls.begin(key, id, name, given);
  }
}
