// One answer through every door that npm has a client for: node all_doors.mjs URL HALF
//
// Anthropic's client creates it, and the others join. Each says `half` when it has the word HALF, and at last `end`,
// with the answer and how it came: `resumed` by itself or by the loop that its documentation has, `replayed` from the
// beginning after an error, or `cut`, an error without a way back.
import { setTimeout as sleep } from "node:timers/promises";
import Anthropic from "@anthropic-ai/sdk";
import { processDataStream } from "ai-4";
import { EventSource } from "eventsource";
import { Client } from "@langchain/langgraph-sdk";
import OpenAI from "openai";
import { chatOf } from "./abstract_chat.mjs";
import { batonChatTransport } from "./baton-stream/dist/esm/ai-sdk.js";
import { follow } from "./baton-stream/dist/esm/index.js";
import { BatonAgent } from "./baton_agent.mjs";
import { say } from "./say.mjs";

const [url, half] = process.argv.slice(2);
const CHAT = "42";
console.error = () => {};
process.on("unhandledRejection", () => {}); // AG-UI's client rejects a promise that nobody has

class Viewer {
  text = "";
  said = false;
  how = "whole";
  constructor(door) {
    this.door = door;
  }
  add(delta) {
    this.text += delta;
    this.check();
  }
  check() {
    if (!this.said && this.text.includes(half)) {
      this.said = true;
      say("half", { door: this.door });
    }
  }
  end() {
    say("end", { door: this.door, text: this.text, how: this.how });
  }
}

async function view(door, read) {
  const viewer = new Viewer(door);
  await read(viewer);
  viewer.end();
}

/** Try until it works: a client whose documentation says to come back after an error. */
async function comingBack(viewer, how, attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch {
      viewer.how = how;
      await sleep(100);
    }
  }
}

const doors = {
  "EventSource": ({ id }) => async (viewer) => {
    const source = new EventSource(`${url}/v1/streams/${id}/events`);
    source.onerror = () => (viewer.how = "resumed");
    await new Promise((resolve) => {
      source.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        if (event.type === "text") viewer.add(event.delta);
        if (event.type === "done") resolve();
      };
    });
    source.close();
  },
  "baton-stream": ({ id }) => async (viewer) => {
    const onDisconnect = () => (viewer.how = "resumed");
    for await (const event of follow({ url, id }, { onDisconnect })) if (event.type === "text") viewer.add(event.delta);
  },
  "Responses": ({ id }) => async (viewer) => {
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
    let starting_after;
    await comingBack(viewer, "resumed", async () => {
      const options = { stream: true, ...(starting_after === undefined ? {} : { starting_after }) };
      for await (const event of await client.responses.retrieve(`resp_${id.replaceAll("-", "")}`, options)) {
        starting_after = event.sequence_number;
        if (event.type === "response.output_text.delta") viewer.add(event.delta);
      }
    });
  },
  "LangGraph": ({ id }) => async (viewer) => {
    let requests = 0;
    const callerOptions = { fetch: (...request) => ++requests && fetch(...request) };
    const client = new Client({ apiUrl: `${url}/v1/langgraph`, callerOptions });
    for await (const { event, data } of client.runs.joinStream(CHAT, id, { streamMode: ["messages-tuple"] })) {
      if (event === "messages" && data[0].type === "AIMessageChunk") viewer.add(data[0].content);
    }
    if (requests > 1) viewer.how = "resumed";
  },
  "AG-UI": ({ id }) => async (viewer) => {
    await comingBack(viewer, "replayed", async () => {
      const agent = new BatonAgent({ url: `${url}/v1/ag-ui/tap`, threadId: id });
      viewer.text = "";
      agent.subscribe({ onTextMessageContentEvent: ({ event }) => viewer.add(event.delta) });
      await agent.connectAgent();
    });
  },
  "useChat": () => async (viewer) => {
    const { sdk, Chat, State } = await chatOf("7");
    const transport = new sdk.DefaultChatTransport({ api: `${url}/v1/ai-sdk/chat` });
    const chat = new Chat({ id: CHAT, state: new State([]), transport });
    await byChat(viewer, chat, async () => {
      await chat.resumeStream();
      if (chat.error) throw chat.error;
    });
  },
  "batonChatTransport": () => async (viewer) => {
    const { Chat, State } = await chatOf("7");
    let requests = 0;
    const transport = batonChatTransport({ url, fetch: (...request) => ++requests && fetch(...request) });
    const chat = new Chat({ id: CHAT, state: new State([]), transport });
    await byChat(viewer, chat, () => chat.resumeStream());
    if (chat.error) viewer.how = `failed: ${chat.error}`;
    else if (requests > 1) viewer.how = "resumed";
  },
  "AI SDK 4": () => async (viewer) => {
    await comingBack(viewer, "replayed", async () => {
      viewer.text = "";
      const { body } = await fetch(`${url}/v1/ai-sdk/v4/chat?chatId=${CHAT}`);
      let finished = false;
      await processDataStream({
        stream: body,
        onTextPart: (delta) => viewer.add(delta),
        onFinishMessagePart: () => (finished = true),
      });
      if (!finished) throw new Error("This answer has no end.");
    });
  },
  "plain text": ({ id }) => async (viewer) => {
    const { body } = await fetch(`${url}/v1/streams/${id}/events`, { headers: { accept: "text/plain" } });
    try {
      for await (const text of body.pipeThrough(new TextDecoderStream())) viewer.add(text);
    } catch {
      viewer.how = "cut";
    }
  },
};

/** The text of a chat that `useChat` would show: a replay replaces it. */
async function byChat(viewer, chat, resume) {
  const shown = () => (chat.messages.at(-1)?.parts ?? []).map((part) => (part.type === "text" ? part.text : "")).join("");
  void chat.until(() => shown().includes(half)).then(() => ((viewer.text = shown()), viewer.check()));
  await comingBack(viewer, "replayed", resume);
  viewer.text = shown();
}

const anthropic = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const body = { model: "tap", max_tokens: 1000, metadata: { chat: CHAT }, messages: [{ role: "user", content: "Hello" }] };
const ask = () => anthropic.messages.stream(body, { headers: { "Idempotency-Key": "all doors" } });

let asked = ask();
const { id: message } = await new Promise((resolve) => {
  asked.on("streamEvent", (event) => event.type === "message_start" && resolve(event.message));
});
const id = message.replace(/^msg_(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
say("created", { id, doors: ["Anthropic", ...Object.keys(doors)] });

async function byAnthropic(viewer) {
  await comingBack(viewer, "replayed", async () => {
    const stream = asked ?? ask();
    asked = null;
    viewer.text = "";
    stream.on("text", (delta) => viewer.add(delta));
    await stream.finalMessage();
  });
}

await Promise.all([view("Anthropic", byAnthropic), ...Object.entries(doors).map(([door, open]) => view(door, open({ id })))]);
process.exit(0);
