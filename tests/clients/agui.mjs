// AG-UI's own client, with the subclass of the documentation.
import { readFileSync } from "node:fs";
import { buildResumeArray } from "@ag-ui/client";
import { BatonAgent } from "./baton_agent.mjs";
import { say } from "./say.mjs";

const [scenario, url, other] = process.argv.slice(2);
console.error = () => {};
// After a cut the client also rejects a promise that nobody has.
process.on("unhandledRejection", () => {});
const USER = { id: "u", role: "user", content: "Hello" };

function agentAt(base, messages = [], more = {}) {
  const agent = new BatonAgent({ url: base, threadId: "t", initialMessages: messages, ...more });
  const seen = { ended: null, error: null, pending: null, custom: [] };
  agent.subscribe({
    onTextMessageContentEvent: () => say("text"),
    onRunFinishedEvent: ({ outcome, pendingToolCallIds }) => Object.assign(seen, { ended: outcome, pending: pendingToolCallIds }),
    onRunErrorEvent: ({ event }) => (seen.error = `${event.code}: ${event.message}`),
    onCustomEvent: ({ event }) => seen.custom.push([event.name, event.value]),
  });
  return { agent, seen };
}

async function run(given, step, start) {
  let thrown = null;
  try {
    await start(given.agent);
  } catch (error) {
    thrown = String(error.message ?? error);
  }
  say(step, { ...given.seen, thrown, messages: given.agent.messages, interrupts: given.agent.pendingInterrupts });
}

const scenarios = {
  async send() {
    await run(agentAt(url, [USER]), "done", (agent) => agent.runAgent({ runId: "r1" }));
  },
  async fed() {
    const fetch = async () => new Response(readFileSync(url), { headers: { "content-type": "text/event-stream" } });
    await run(agentAt("http://nowhere", [USER], { fetch }), "done", (agent) => agent.runAgent());
  },
  async killed() {
    const first = agentAt(url, [USER]);
    await run(first, "cut", (agent) => agent.runAgent({ runId: "r1" }));
    await run(agentAt(other, first.agent.messages), "connected", (agent) => agent.connectAgent());
    await run(agentAt(other, first.agent.messages), "again", (agent) => agent.runAgent({ runId: "r1" }));
  },
  async tools() {
    const page = agentAt(url, [USER]);
    await run(page, "called", (agent) => agent.runAgent({ tools: [{ name: "weather", description: "Looks." }] }));
    for (const toolCallId of page.seen.pending) page.agent.addMessage({ id: `result_${toolCallId}`, role: "tool", toolCallId, content: "3" });
    await run(page, "done", (agent) => agent.runAgent());
  },
  async interrupt() {
    const page = agentAt(url, [USER]);
    await run(page, "asked", (agent) => agent.runAgent());
    const answers = Object.fromEntries(page.agent.pendingInterrupts.map(({ id }) => [id, { status: "resolved", payload: { approved: true } }]));
    const resume = buildResumeArray(page.agent.pendingInterrupts, answers);
    await run(page, "done", (agent) => agent.runAgent({ resume }));
    await run(agentAt(url), "reloaded", (agent) => agent.connectAgent());
  },
  async stop() {
    const page = agentAt(url, [USER]);
    const running = run(page, "done", (agent) => agent.runAgent());
    await new Promise((resolve) => process.stdin.once("data", resolve));
    await page.agent.stop();
    await running;
    process.exit(0);
  },
};

await scenarios[scenario]();
