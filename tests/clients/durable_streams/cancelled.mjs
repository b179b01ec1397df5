// Writes with an IdempotentProducer, as it is, until the stream is cancelled.
//
// usage: cancelled.mjs BATON
import { DurableStream, IdempotentProducer } from "@durable-streams/client";

const [baton] = process.argv.slice(2);
const say = (event, fields) => console.log(JSON.stringify({ event, ...fields }));
let requests = 0;

const answer = await fetch(`${baton}/v1/streams`, { method: "POST", body: JSON.stringify({ generator: "external" }) });
const { id, producer: { url } } = await answer.json();
const onError = (error) => say("refused", { name: error.constructor.name, requests });
const counted = (...request) => ++requests && fetch(...request);
const stream = new DurableStream({ url: baton + url, contentType: "application/json" });
const producer = new IdempotentProducer(stream, "writer", { onError, fetch: counted });
async function write() {
  producer.append(JSON.stringify({ type: "text", delta: "x" }));
  await producer.flush().catch(() => {});
}
await write();
await write();
await fetch(`${baton}/v1/streams/${id}/cancel`, { method: "POST" });
await write();
