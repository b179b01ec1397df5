// Reads event streams with the AI SDK's own schema, and shows what they become.
import { parseJsonEventStream, readUIMessageStream, uiMessageChunkSchema } from "ai";

for (const body of JSON.parse(process.argv[2])) {
  const chunks = [];
  const errors = [];
  const stream = parseJsonEventStream({ stream: new Blob([body]).stream(), schema: uiMessageChunkSchema });
  for await (const { success, value, error } of stream) {
    if (!success) throw error;
    chunks.push(value);
  }
  let message;
  const replay = new ReadableStream({
    start: (to) => (chunks.forEach((chunk) => to.enqueue(structuredClone(chunk))), to.close()),
  });
  const shown = readUIMessageStream({ stream: replay, onError: (error) => errors.push(error.message) });
  for await (message of shown);
  console.log(JSON.stringify({ event: "read", chunks, errors, message }));
}
