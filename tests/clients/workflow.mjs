// WorkflowChatTransport: comes back by itself, by the index of the next chunk, until it has seen `finish`.
import { say } from "./say.mjs";
import { workflowTransport } from "./transport.mjs";

const [model] = process.argv.slice(2);
const transport = workflowTransport(model, {
  fetch: async (address, options) => {
    const response = await fetch(address, options);
    say("asked", { url: address, status: response.status, tail: response.headers.get("x-workflow-stream-tail-index") });
    return response;
  },
  onChatEnd: ({ chunkIndex }) => say("end", { chunkIndex }),
});
const messages = [{ id: "1", role: "user", parts: [{ type: "text", text: "Hello" }] }];

async function read(stream) {
  const chunks = [];
  for await (const chunk of stream) {
    chunks.push(chunk);
    if (chunk.delta === "word299 ") say("half");
  }
  return chunks;
}

console.error = console.warn = () => {};
const sent = await transport.sendMessages({ trigger: "submit-message", chatId: "42", messages });
say("whole", { chunks: await read(sent) });
say("again", { chunks: await read(await transport.reconnectToStream({ chatId: "42" })) });
say("tail", { chunks: await read(await transport.reconnectToStream({ chatId: "42", startIndex: -5 })) });
process.exit(0);
