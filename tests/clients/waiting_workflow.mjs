// WorkflowChatTransport, whose answer waits for the user: it asks again with the index of the next chunk.
import { readUIMessageStream } from "ai";
import { say } from "./say.mjs";
import { workflowTransport } from "./transport.mjs";

const asked = [];
const transport = workflowTransport("careful", {
  fetch: async (address, options) => {
    const response = await fetch(address, options);
    asked.push(String(address).replace(/^.*\/chat/, "").replace(/[0-9a-f]{32}/, "ID"));
    return response;
  },
});
console.error = console.warn = () => {};

async function read(stream, message) {
  let last;
  for await (last of readUIMessageStream({ stream, message, terminateOnError: true })) {
    if (last.parts.at(-1)?.text === "It is ") say("half");
  }
  return last;
}

const question = { id: "1", role: "user", parts: [{ type: "text", text: "Hello" }] };
const send = (messages) => transport.sendMessages({ trigger: "submit-message", chatId: "42", messages });
const waiting = await read(await send([question]));
say("asked", { message: waiting, asked });
const answered = structuredClone(waiting);
for (const part of answered.parts) {
  if (part.state === "approval-requested") {
    part.state = "approval-responded";
    part.approval.approved = true;
  }
}
say("answered", { message: await read(await send([question, answered]), answered), asked });
say("replayed", { message: await read(await transport.reconnectToStream({ chatId: "42" })), asked });
process.exit(0);
