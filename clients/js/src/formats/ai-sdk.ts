// The parts of an AI SDK `fullStream`, and the chunks of its UI message stream: versions 5, 6 and 7.

import type { Message } from "../events.js";
import { Calls, type Fields, type Format, cutOff, fields, finish, reasoning, text, usage } from "./format.js";

const FINISH_REASONS: Record<string, string> = {
  "content-filter": "content_filter",
  "tool-calls": "tool_calls",
  unknown: "other",
};

export class AiSdk implements Format {
  readonly #calls = new Calls();
  readonly #whole = new Set<unknown>(); // calls whose input is no JSON until it is complete
  readonly #describe: (error: unknown) => Message;
  #reason = "stop";
  #counted = false;
  #inStep = false; // this step has said something

  constructor(describe: (error: unknown) => Message) {
    this.#describe = describe;
  }

  take(item: unknown): Message[] {
    const part = fields(item);
    const messages = this.#translate(part);
    if (part.type === "start-step" || part.type === "finish-step") this.#inStep = false;
    else this.#inStep ||= messages.length > 0;
    return messages;
  }

  end(): Message[] {
    return [finish(this.#reason)];
  }

  #translate(part: Fields): Message[] {
    switch (part.type) {
      case "text-delta":
        return text(part.text ?? part.delta);
      case "reasoning-delta":
        return reasoning(part.text ?? part.delta);
      case "tool-input-start":
        return this.#begin(part);
      case "tool-input-delta":
        return this.#whole.has(callId(part)) ? [] : this.#calls.extend(callId(part), part.delta ?? part.inputTextDelta);
      case "tool-call":
      case "tool-input-available":
      case "tool-input-error":
        return this.#call(part);
      case "tool-result":
      case "tool-output-available":
        return part.preliminary ? [] : [{ type: "tool_result", id: part.toolCallId, result: part.output ?? null }];
      case "tool-error":
        return [failed(part, messageOf(part.error))];
      case "tool-output-error":
        return [failed(part, String(part.errorText))];
      case "tool-output-denied":
        return [failed(part, "The user did not allow this call.")];
      case "tool-approval-request":
        return part.isAutomatic ? [] : [{ type: "tool_approval", id: part.toolCall?.toolCallId ?? part.toolCallId }];
      case "finish-step":
        return this.#count(part.usage);
      case "finish":
        return this.#finish(part);
      default:
        return this.#other(part);
    }
  }

  #other(part: Fields): Message[] {
    switch (part.type) {
      case "abort":
        return [{ type: "error", code: "aborted", message: "The answer was stopped before it was complete." }];
      case "error":
        return [this.#describe("errorText" in part ? String(part.errorText) : part.error)];
      case "reset-step":
        return this.#inStep ? [RESTARTED] : [];
      case "source":
      case "source-url":
        return [{ type: "custom", name: "source", data: source(part) }];
      case "file":
      case "reasoning-file":
        return [{ type: "custom", name: part.type, data: file(part) }];
      case "source-document":
        return [{ type: "custom", name: "source-document", data: without(part, "type", "providerMetadata") }];
      default:
        return isData(part) ? [{ type: "custom", name: part.type.slice("data-".length), data: part.data, ...id(part) }] : [];
    }
  }

  #begin(part: Fields): Message[] {
    if (part.inputEncoding === "text") this.#whole.add(callId(part));
    const side = part.providerExecuted ? { run_by: "generator" } : {};
    return this.#calls.begin(callId(part), callId(part), part.toolName, "", side);
  }

  #call(part: Fields): Message[] {
    const input = JSON.stringify(part.input ?? {});
    const begun = this.#calls.has(part.toolCallId) ? [] : this.#begin({ ...part, inputEncoding: "json" });
    const messages = [...begun, ...this.#calls.complete(part.toolCallId, input)];
    return part.type === "tool-input-error" ? [...messages, failed(part, String(part.errorText))] : messages;
  }

  #count(counts: unknown): Message[] {
    const { inputTokenDetails: input, outputTokenDetails: output, ...total } = fields(counts);
    this.#counted = true;
    return usage({
      input_tokens: total.inputTokens,
      output_tokens: total.outputTokens,
      total_tokens: total.totalTokens,
      cached_tokens: total.cachedInputTokens ?? input?.cacheReadTokens,
      cache_write_tokens: input?.cacheWriteTokens,
      reasoning_tokens: total.reasoningTokens ?? output?.reasoningTokens,
    });
  }

  #finish(part: Fields): Message[] {
    const reason = String(part.finishReason ?? "stop");
    if (reason === "error") return [this.#describe(undefined)];
    if (reason === "interrupted") return [cutOff()]; // the provider's stream ended without saying so
    this.#reason = FINISH_REASONS[reason] ?? reason;
    return this.#counted ? [] : this.#count(part.totalUsage);
  }
}

const RESTARTED: Message = {
  type: "error",
  code: "producer_error",
  message: "The answer was discarded and started again, which its stream cannot express.",
};

const callId = (part: Fields): unknown => part.toolCallId ?? part.id;

const failed = (part: Fields, error: string): Message => ({ type: "tool_result", id: part.toolCallId, result: { error } });

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

const id = (part: Fields): { id?: string } => (typeof part.id === "string" ? { id: part.id } : {});

const isData = (part: Fields): boolean => typeof part.type === "string" && part.type.length > 5 && part.type.startsWith("data-");

const source = (part: Fields): Fields => ({
  ...without(part, "type", "providerMetadata", "sourceId"),
  id: part.id ?? part.sourceId,
});

function file(part: Fields): Fields {
  const { mediaType, base64 } = part.file ?? {};
  return part.file ? { mediaType, url: `data:${mediaType};base64,${base64}` } : without(part, "type", "providerMetadata");
}

function without(part: Fields, ...names: string[]): Fields {
  return Object.fromEntries(Object.entries(part).filter(([name]) => !names.includes(name)));
}
