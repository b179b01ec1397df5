// Each SDK itself makes the items that are translated, from a provider that is a mock model or a local server.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";
import { z } from "zod";
import { ownTools, produce } from "baton-stream/produce";
import { Detecting, detect } from "../dist/esm/formats/detect.js";
import { AppendServer, serving } from "./server.mjs";

/** Produce a source, and return what is in the log. */
async function logged(source, options = {}) {
  const server = new AppendServer();
  await serving(server.handle, async (url) => (await produce(source, { create: { url }, ...options })).done);
  return server.log;
}

const joined = (log, kind) => log.filter(({ type }) => type === kind).map(({ delta }) => delta).join("");
const callsOf = (log) => {
  const calls = [];
  for (const { type, index, id, name, arguments_delta: delta = "", run_by } of log) {
    if (type !== "tool_call") continue;
    if (id) calls[index] = { id, name, arguments: delta, ...(run_by && { run_by }) };
    else calls[index].arguments += delta;
  }
  return calls;
};
const only = (log, type) => log.filter((message) => message.type === type);

// The AI SDK

const VERSIONS = { 5: "ai-5", 6: "ai-6", 7: "ai" };
const MODELS = { 5: "MockLanguageModelV2", 6: "MockLanguageModelV3", 7: "MockLanguageModelV4" };

const usageOf = (version) =>
  version === "5"
    ? { inputTokens: 10, outputTokens: 5, totalTokens: 15, reasoningTokens: 2, cachedInputTokens: 4 }
    : { inputTokens: { total: 10, noCache: 6, cacheRead: 4 }, outputTokens: { total: 5, text: 3, reasoning: 2 } };
const finishOf = (version, reason) => ({ type: "finish", finishReason: version === "5" ? reason : { unified: reason, raw: reason }, usage: usageOf(version) });

const STEP_1 = [
  { type: "stream-start", warnings: [] },
  { type: "reasoning-start", id: "r" },
  { type: "reasoning-delta", id: "r", delta: "They ask " },
  { type: "reasoning-delta", id: "r", delta: "for weather." },
  { type: "reasoning-end", id: "r" },
  { type: "tool-input-start", id: "c1", toolName: "weather" },
  { type: "tool-input-delta", id: "c1", delta: '{"city":' },
  { type: "tool-input-delta", id: "c1", delta: '"Rome"}' },
  { type: "tool-input-end", id: "c1" },
  { type: "tool-call", toolCallId: "c1", toolName: "weather", input: '{"city":"Rome"}' },
  { type: "tool-call", toolCallId: "c2", toolName: "weather", input: '{"city":"Oslo"}' },
  { type: "source", sourceType: "url", id: "s", url: "https://example.com/", title: "Example" },
];
const STEP_2 = [
  { type: "stream-start", warnings: [] },
  { type: "text-start", id: "t" },
  { type: "text-delta", id: "t", delta: "It is " },
  { type: "text-delta", id: "t", delta: "sunny." },
  { type: "text-end", id: "t" },
];

async function sdkOf(version) {
  const sdk = await import(VERSIONS[version]);
  const mocks = await import(`${VERSIONS[version]}/test`);
  return { ...sdk, Model: mocks[MODELS[version]], streams: (parts) => ({ stream: sdk.simulateReadableStream({ chunks: parts, chunkDelayInMs: null, initialDelayInMs: null }) }) };
}

async function weather(version) {
  const { streamText, stepCountIs, isStepCount, tool, Model, streams } = await sdkOf(version);
  const steps = [[...STEP_1, finishOf(version, "tool-calls")], [...STEP_2, finishOf(version, "stop")]];
  const execute = async ({ city }) => {
    if (city === "Oslo") throw new Error("no weather");
    return { sunny: true };
  };
  return streamText({
    model: new Model({ doStream: async () => streams(steps.shift()) }),
    prompt: "Weather?",
    tools: { weather: tool({ inputSchema: z.object({ city: z.string() }), execute }) },
    stopWhen: (stepCountIs ?? isStepCount)(3),
    onError: () => {},
  });
}

for (const version of Object.keys(VERSIONS)) {
  test(`AI SDK ${version}: a fullStream`, async () => {
    const log = await logged((await weather(version)).fullStream);
    assert.equal(joined(log, "reasoning"), "They ask for weather.");
    assert.equal(joined(log, "text"), "It is sunny.");
    const [rome, oslo] = callsOf(log);
    assert.deepEqual(rome, { id: "c1", name: "weather", arguments: '{"city":"Rome"}' });
    assert.deepEqual(oslo, { id: "c2", name: "weather", arguments: '{"city":"Oslo"}' });
    const results = Object.fromEntries(only(log, "tool_result").map(({ id, result }) => [id, result]));
    assert.deepEqual(results, { c1: { sunny: true }, c2: { error: "no weather" } });
    const counts = { type: "usage", input_tokens: 10, output_tokens: 5, total_tokens: 15, cached_tokens: 4, reasoning_tokens: 2 };
    assert.deepEqual(only(log, "usage"), [counts, counts]);
    assert.equal(only(log, "custom")[0].data.url, "https://example.com/");
    assert.deepEqual(log.at(-1), { type: "finish", finish_reason: "stop" });
  });

  test(`AI SDK ${version}: a UI message stream`, async () => {
    const log = await logged((await weather(version)).toUIMessageStream({ sendSources: true }));
    assert.equal(joined(log, "reasoning"), "They ask for weather.");
    assert.equal(joined(log, "text"), "It is sunny.");
    assert.deepEqual(callsOf(log).map((call) => call.arguments), ['{"city":"Rome"}', '{"city":"Oslo"}']);
    const results = Object.fromEntries(only(log, "tool_result").map(({ id, result }) => [id, result]));
    assert.deepEqual(results.c1, { sunny: true });
    assert.ok(results.c2.error);
    assert.deepEqual(only(log, "custom")[0], { type: "custom", name: "source", data: { id: "s", url: "https://example.com/", title: "Example" } });
    assert.deepEqual(log.at(-1), { type: "finish", finish_reason: "stop" });
  });

  test(`AI SDK ${version}: a failing model ends the stream as failed`, async () => {
    const { streamText, Model, APICallError } = await sdkOf(version);
    const doStream = async () => {
      throw new APICallError({ message: "secret", url: "http://x", requestBodyValues: {}, statusCode: 401, isRetryable: false });
    };
    const stream = () => streamText({ model: new Model({ doStream }), prompt: "x", onError: () => {} });
    assert.equal((await logged(stream().fullStream)).at(-1).code, "provider_auth_failed");
    const log = await logged(stream().toUIMessageStream());
    assert.equal(log.at(-1).type, "error");
    assert.doesNotMatch(JSON.stringify(log), /secret/);
  });

  test(`AI SDK ${version}: an abort ends the stream as failed`, async () => {
    const { streamText, Model } = await sdkOf(version);
    const abort = new AbortController();
    const start = (controller) => {
      STEP_2.slice(0, 3).forEach((part) => controller.enqueue(part));
      abort.signal.addEventListener("abort", () => controller.error(abort.signal.reason)); // as a provider's request does
    };
    const doStream = async () => ({ stream: new ReadableStream({ start }) });
    const result = streamText({ model: new Model({ doStream }), prompt: "x", abortSignal: abort.signal, onError: () => {} });
    const source = (async function* () {
      for await (const part of result.fullStream) {
        yield part;
        if (part.type === "text-delta") abort.abort();
      }
    })();
    assert.equal((await logged(source)).at(-1).code, "aborted");
  });
}

for (const version of Object.keys(VERSIONS)) {
  test(`AI SDK ${version}: calls of the handler's own tools go back to the model with their results`, async () => {
    const { convertToModelMessages } = await import(VERSIONS[version]);
    const part = (type, id) => ({ type, toolCallId: id, state: "output-available", input: {}, output: id, providerExecuted: true });
    const parts = [part("tool-own", "a"), part("tool-theirs", "b"), { ...part("dynamic-tool", "c"), toolName: "own" }, { type: "text", text: "Done." }];
    const messages = [{ id: "1", role: "assistant", parts }];
    const tools = { own: { execute: () => {} }, theirs: { type: "provider" } };
    const [assistant, tool] = await convertToModelMessages(ownTools(messages, tools));
    const results = ({ content }) => content.filter(({ type }) => type === "tool-result").map(({ toolCallId }) => toolCallId);
    assert.deepEqual([results(assistant), tool.role, results(tool)], [["b"], "tool", ["a", "c"]]);
    assert.equal(parts[0].providerExecuted, true); // the page's messages are left as they are
  });
}

test("AI SDK: the parts that providers and pages rarely send", async () => {
  const parts = [
    { type: "start" },
    { type: "data-plan", id: "p", data: { steps: 2 } },
    { type: "file", file: { mediaType: "image/png", base64: "AAAA" } },
    { type: "file", mediaType: "image/png", url: "data:image/png;base64,AAAA" },
    { type: "tool-input-start", id: "c", toolName: "shell", inputEncoding: "text", providerExecuted: true },
    { type: "tool-input-delta", id: "c", delta: "ls -l" },
    { type: "tool-call", toolCallId: "c", toolName: "shell", input: "ls -l" },
    { type: "tool-result", toolCallId: "c", output: "half", preliminary: true },
    { type: "tool-call", toolCallId: "d", toolName: "ask", input: {} },
    { type: "tool-approval-request", approvalId: "a", toolCall: { toolCallId: "d" } },
    { type: "tool-output-denied", toolCallId: "d" },
    { type: "reset-step" },
  ];
  const log = await logged((async function* () { yield* parts; })());
  assert.deepEqual(log.slice(0, 3), [
    { type: "custom", name: "plan", data: { steps: 2 }, id: "p" },
    { type: "custom", name: "file", data: { mediaType: "image/png", url: "data:image/png;base64,AAAA" } },
    { type: "custom", name: "file", data: { mediaType: "image/png", url: "data:image/png;base64,AAAA" } },
  ]);
  assert.deepEqual(callsOf(log)[0], { id: "c", name: "shell", arguments: '"ls -l"', run_by: "generator" });
  assert.deepEqual(only(log, "tool_approval"), [{ type: "tool_approval", id: "d" }]);
  assert.deepEqual(only(log, "tool_result").map(({ id }) => id), ["d"]);
  assert.equal(log.at(-1).code, "producer_error");
});

// OpenAI and Anthropic

/** Answer every request with these events, as the SDK's provider would. */
const provider = (events, work, named = false) =>
  serving((_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (const event of events) response.write(`${named ? `event: ${event.type}\n` : ""}data: ${typeof event === "string" ? event : JSON.stringify(event)}\n\n`);
    response.end();
  }, work);

const chunk = (delta, finish_reason = null, more = {}) => ({ id: "x", object: "chat.completion.chunk", choices: [{ index: 0, delta, finish_reason }], ...more });
const call = (index, id, name, given) => ({ index, ...(id && { id, type: "function" }), function: { ...(name && { name }), arguments: given } });
const CHAT = [
  chunk({ role: "assistant", content: "" }),
  chunk({ reasoning_content: "hm" }),
  chunk({ content: "Hel" }),
  chunk({ content: "lo" }),
  chunk({ tool_calls: [call(0, "c1", "get", ""), call(1, "c2", "put", "")] }),
  chunk({ tool_calls: [call(0, null, null, '{"a":'), call(1, null, null, "{}")] }),
  chunk({ tool_calls: [call(0, null, null, "1}")] }),
  chunk({}, "tool_calls"),
  { id: "x", object: "chat.completion.chunk", choices: [], usage: { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7, prompt_tokens_details: { cached_tokens: 1 } } },
  "[DONE]",
];

const chatted = (events) => provider(events, (baseURL) => {
  const client = new OpenAI({ apiKey: "x", baseURL, maxRetries: 0 });
  return logged(() => client.chat.completions.create({ model: "m", messages: [], stream: true }));
});

test("OpenAI: a chat completion", async () => {
  const log = await chatted(CHAT);
  assert.equal(joined(log, "text"), "Hello");
  assert.equal(joined(log, "reasoning"), "hm");
  assert.deepEqual(callsOf(log), [
    { id: "c1", name: "get", arguments: '{"a":1}', run_by: "client" },
    { id: "c2", name: "put", arguments: "{}", run_by: "client" },
  ]);
  assert.deepEqual(only(log, "usage"), [{ type: "usage", input_tokens: 3, output_tokens: 4, total_tokens: 7, cached_tokens: 1 }]);
  assert.deepEqual(log.at(-1), { type: "finish", finish_reason: "tool_calls" });
});

test("OpenAI: a chat completion that breaks off, or reports an error", async () => {
  assert.equal((await chatted(CHAT.slice(0, 4))).at(-1).code, "provider_cut_off");
  const failed = await chatted([...CHAT.slice(0, 4), { error: { code: "server_error", message: "secret" } }]);
  assert.equal(failed.at(-1).type, "error");
  assert.doesNotMatch(JSON.stringify(failed), /secret/);
});

const response = (status, more = {}) => ({ id: "resp", object: "response", status, output: [], usage: { input_tokens: 3, output_tokens: 4, total_tokens: 7, output_tokens_details: { reasoning_tokens: 2 } }, ...more });
const item = { id: "i", type: "function_call", call_id: "c1", name: "get", arguments: "" };
const RESPONSES = [
  { type: "response.created", response: response("in_progress") },
  { type: "response.reasoning_summary_part.added", output_index: 0, summary_index: 0 },
  { type: "response.reasoning_summary_text.delta", output_index: 0, summary_index: 0, delta: "hm" },
  { type: "response.output_text.delta", output_index: 1, delta: "Hel" },
  { type: "response.output_text.delta", output_index: 1, delta: "lo" },
  { type: "response.output_text.done", output_index: 1, text: "Hello" },
  { type: "response.output_item.added", output_index: 2, item },
  { type: "response.function_call_arguments.delta", output_index: 2, delta: '{"a":' },
  { type: "response.function_call_arguments.delta", output_index: 2, delta: "1}" },
  { type: "response.output_item.done", output_index: 2, item: { ...item, arguments: '{"a":1}' } },
].map((event, index) => ({ ...event, sequence_number: index }));

const responded = (events) => provider(events, (baseURL) => {
  const client = new OpenAI({ apiKey: "x", baseURL, maxRetries: 0 });
  return logged(() => client.responses.create({ model: "m", input: "x", stream: true }));
}, true);

test("OpenAI: a response", async () => {
  const log = await responded([...RESPONSES, { type: "response.completed", response: response("completed") }]);
  assert.equal(joined(log, "text"), "Hello");
  assert.equal(joined(log, "reasoning"), "hm");
  assert.deepEqual(callsOf(log), [{ id: "c1", name: "get", arguments: '{"a":1}', run_by: "client" }]);
  assert.deepEqual(only(log, "usage"), [{ type: "usage", input_tokens: 3, output_tokens: 4, total_tokens: 7, reasoning_tokens: 2 }]);
  assert.deepEqual(log.at(-1), { type: "finish", finish_reason: "tool_calls" });
});

test("OpenAI: a response that is too long, fails, or breaks off", async () => {
  const incomplete = response("incomplete", { incomplete_details: { reason: "max_output_tokens" } });
  assert.equal((await responded([...RESPONSES, { type: "response.incomplete", response: incomplete }])).at(-1).finish_reason, "length");
  const failed = response("failed", { error: { code: "server_error", message: "secret" } });
  const log = await responded([...RESPONSES, { type: "response.failed", response: failed }]);
  assert.deepEqual(log.at(-1), { type: "error", code: "provider_error", message: "The model provider reported an error during the answer (server_error)." });
  assert.equal((await responded(RESPONSES)).at(-1).code, "provider_cut_off");
});

const MESSAGES = [
  { type: "message_start", message: { id: "m", type: "message", role: "assistant", content: [], usage: { input_tokens: 5, output_tokens: 1, cache_read_input_tokens: 3, cache_creation_input_tokens: null } } },
  { type: "content_block_start", index: 0, content_block: { type: "thinking", thinking: "" } },
  { type: "content_block_delta", index: 0, delta: { type: "thinking_delta", thinking: "hm" } },
  { type: "content_block_delta", index: 0, delta: { type: "signature_delta", signature: "s" } },
  { type: "content_block_stop", index: 0 },
  { type: "ping" },
  { type: "content_block_start", index: 1, content_block: { type: "text", text: "" } },
  { type: "content_block_delta", index: 1, delta: { type: "text_delta", text: "Hello" } },
  { type: "content_block_stop", index: 1 },
  { type: "content_block_start", index: 2, content_block: { type: "tool_use", id: "c1", name: "get", input: {} } },
  { type: "content_block_delta", index: 2, delta: { type: "input_json_delta", partial_json: '{"a":1}' } },
  { type: "content_block_stop", index: 2 },
  { type: "content_block_start", index: 3, content_block: { type: "tool_use", id: "c2", name: "now", input: {} } },
  { type: "content_block_stop", index: 3 },
  { type: "message_delta", delta: { stop_reason: "tool_use" }, usage: { output_tokens: 9 } },
  { type: "message_stop" },
];

const messaged = (events) => provider(events, (baseURL) => {
  const client = new Anthropic({ apiKey: "x", baseURL, maxRetries: 0 });
  return logged(() => client.messages.create({ model: "m", max_tokens: 9, messages: [], stream: true }));
}, true);

test("Anthropic: a message", async () => {
  const log = await messaged(MESSAGES);
  assert.equal(joined(log, "text"), "Hello");
  assert.equal(joined(log, "reasoning"), "hm");
  assert.deepEqual(callsOf(log), [
    { id: "c1", name: "get", arguments: '{"a":1}', run_by: "client" },
    { id: "c2", name: "now", arguments: "{}", run_by: "client" },
  ]);
  assert.deepEqual(only(log, "usage"), [{ type: "usage", input_tokens: 8, output_tokens: 9, total_tokens: 17, cached_tokens: 3 }]);
  assert.deepEqual(log.at(-1), { type: "finish", finish_reason: "tool_calls" });
});

test("Anthropic: a message that breaks off, and one with an error", async () => {
  const cut = await messaged(MESSAGES.slice(0, 8));
  assert.equal(cut.at(-1).code, "provider_cut_off");
  assert.equal(only(cut, "usage")[0].input_tokens, 8);
  const failed = await messaged([...MESSAGES.slice(0, 8), { type: "error", error: { type: "overloaded_error", message: "secret" } }]);
  assert.equal(failed.at(-1).type, "error");
  assert.doesNotMatch(JSON.stringify(failed), /secret/);
});

// What kind of source it is

test("the first item shows the kind of source", () => {
  const kinds = [
    ["text", "events"], [{ type: "text", delta: "x" }, "events"], [{ type: "finish", finish_reason: "stop" }, "events"], [{ type: "error", code: "x", message: "y" }, "events"],
    [{ type: "custom", name: "x" }, "events"], [{ type: "custom", kind: "a.b" }, "ai-sdk"],
    [{ type: "start" }, "ai-sdk"], [{ type: "text-delta", id: "0", delta: "x" }, "ai-sdk"], [{ type: "error", errorText: "x" }, "ai-sdk"],
    [{ type: "error", error: new Error("x") }, "ai-sdk"], [{ type: "finish", finishReason: "stop" }, "ai-sdk"], [{ type: "data-x", data: 1 }, "ai-sdk"], [{ type: "abort" }, "ai-sdk"],
    [CHAT[0], "openai-chat"], [{ choices: [] }, "openai-chat"], [RESPONSES[0], "openai-responses"], [{ type: "error", code: null, sequence_number: 0 }, "openai-responses"],
    [MESSAGES[0], "anthropic"], [{ type: "error", error: { type: "overloaded_error" } }, "anthropic"],
  ];
  for (const [item, kind] of kinds) assert.equal(detect(item), kind, JSON.stringify(item));
  for (const item of [{}, { type: "other" }, null, 7]) assert.throws(() => detect(item), { code: "unknown_format" });
  assert.deepEqual(new Detecting(undefined, () => {}).end(), [{ type: "finish", finish_reason: "stop" }]);
});
