// Which kind of source it is, by its first items.

import { BatonError } from "../errors.js";
import type { Message } from "../events.js";
import { AiSdk } from "./ai-sdk.js";
import { Anthropic } from "./anthropic.js";
import { Events, TYPES } from "./events.js";
import { type Format, fields } from "./format.js";
import { OpenAiChat } from "./openai-chat.js";
import { OpenAiResponses } from "./openai-responses.js";

/** The kinds of sources. `ai-sdk` is a `fullStream` or a UI message stream. */
export type FormatName = "ai-sdk" | "openai-chat" | "openai-responses" | "anthropic" | "events";

const ANTHROPIC = /^(message_(start|delta|stop)|content_block_(start|delta|stop))$/;
const AI_SDK = /^(start|finish|abort|source|file|raw|.*-.*)$/;

/** Return the translation for a kind. `describe` turns an error into the message that ends the stream. */
export function formatOf(name: FormatName, describe: (error: unknown) => Message): Format {
  switch (name) {
    case "ai-sdk":
      return new AiSdk(describe);
    case "openai-chat":
      return new OpenAiChat();
    case "openai-responses":
      return new OpenAiResponses();
    case "anthropic":
      return new Anthropic();
    case "events":
      return new Events();
    default:
      throw new BatonError("unknown_format", `There is no format ${String(name)}.`);
  }
}

/** Return the kind of source that begins with this item. Throws if there is none. */
export function detect(item: unknown): FormatName {
  if (typeof item === "string") return "events";
  const found = fields(item);
  if (found.object === "chat.completion.chunk" || Array.isArray(found.choices)) return "openai-chat";
  const type = String(found.type);
  if (type.startsWith("response.")) return "openai-responses";
  if (ANTHROPIC.test(type)) return "anthropic";
  if (type === "error") return kindOfError(found);
  if (type === "finish") return "finish_reason" in found ? "events" : "ai-sdk";
  if (type === "custom") return "kind" in found ? "ai-sdk" : "events";
  if (TYPES.has(type)) return "events";
  if (AI_SDK.test(type)) return "ai-sdk";
  throw new BatonError(
    "unknown_format",
    `The source begins with ${JSON.stringify(item)?.slice(0, 80)}, which is no item of a known kind. Name its \`format\`.`,
  );
}

function kindOfError(found: Record<string, unknown>): FormatName {
  if ("errorText" in found) return "ai-sdk";
  if ("sequence_number" in found) return "openai-responses";
  if ("error" in found) return fields(found.error).type && !(found.error instanceof Error) ? "anthropic" : "ai-sdk";
  return "events";
}

/** Translates a source whose kind its first item decides. A source without items is complete. */
export class Detecting implements Format {
  readonly #describe: (error: unknown) => Message;
  #format: Format | null;

  constructor(name: FormatName | undefined, describe: (error: unknown) => Message) {
    this.#describe = describe;
    this.#format = name ? formatOf(name, describe) : null;
  }

  take(item: unknown): Message[] {
    const { type } = fields(item);
    if (this.#format === null && type === "ping") return []; // Anthropic's and the AI SDK's
    this.#format ??= formatOf(detect(item), this.#describe);
    return this.#format.take(item);
  }

  end(): Message[] {
    return (this.#format ?? new Events()).end();
  }
}
