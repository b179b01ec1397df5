// LangGraph's JavaScript SDK, as its users write it: `node langgraph.mjs <url> <what> <thread>`.
import { Client } from "@langchain/langgraph-sdk";

import { say } from "./say.mjs";

const [url, what, thread] = process.argv.slice(2);
const client = new Client({ apiUrl: `${url}/v1/langgraph` });
const input = { messages: [{ type: "human", content: "go" }] };

/** Read a run; report when `seen` chunks of text have come, and what there was at its end. */
async function read(parts, seen = 200) {
  let chunks = 0;
  let text = "";
  let values;
  const events = [];
  for await (const { event, data } of parts) {
    events.push(event);
    if (event === "messages" && data[0].type === "AIMessageChunk") {
      text += data[0].content;
      if (++chunks === seen) say("seen");
    }
    if (event === "values") values = data;
    if (event === "error") say("error", { error: data });
  }
  say("end", { text, values, events });
}

if (what === "stream") {
  await read(client.runs.stream(thread, "tap", { input, streamMode: ["messages-tuple", "values"] }));
} else if (what === "join") {
  const run = await client.runs.create(thread, "tap", { input });
  say("created", { run });
  await read(client.runs.joinStream(thread, run.run_id));
} else {
  // A whole conversation with the generator `agent`.
  say("assistants", { found: (await client.assistants.search()).map((found) => found.assistant_id) });
  const { thread_id } = await client.threads.create();
  const asks = { input: { messages: [{ type: "human", content: "ask" }] } };
  say("asked", { values: await client.runs.wait(thread_id, "agent", asks) });
  const state = await client.threads.getState(thread_id);
  say("state", { interrupts: state.tasks[0].interrupts, status: (await client.threads.get(thread_id)).status });
  say("resumed", { values: await client.runs.wait(thread_id, "agent", { command: { resume: "yes" } }) });
  const slow = { input: { messages: [{ type: "human", content: "slow" }] } };
  const run = await client.runs.create(thread_id, "agent", slow);
  await client.runs.cancel(thread_id, run.run_id, true);
  say("cancelled", { run: await client.runs.get(thread_id, run.run_id) });
  try {
    await client.runs.wait(thread_id, "agent", { input: { messages: [{ type: "human", content: "fail" }] } });
  } catch (error) {
    say("failed", { message: error.message });
  }
  try {
    await client.runs.wait(thread_id, "agent", { ...asks, multitaskStrategy: "rollback" });
  } catch (error) {
    say("refused", { message: error.message });
  }
  say("history", { states: (await client.threads.getHistory(thread_id)).length });
}
