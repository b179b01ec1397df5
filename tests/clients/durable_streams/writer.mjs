// Writes streams, each with an IdempotentProducer and another one that takes over from it; the last message closes it.
//
// usage: writer.mjs PLAN SECONDS, where PLAN is a file of JSON: for each stream [url, content type, messages in base64]
//
// The client repeats a PUT by itself, but no append: an IdempotentProducer reports a network error or a 5xx, and its
// sequence has a gap from then on. So the application gives it a `fetch` that repeats a request until it is answered.
// The repeated request has the same epoch and sequence number, and the server takes each batch once.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { DurableStream, IdempotentProducer, StaleEpochError } from "@durable-streams/client";

const [plan, seconds] = process.argv.slice(2);
const say = (event, fields) => console.log(JSON.stringify({ event, ...fields }));
let repeated = 0;

async function persistent(...request) {
  for (let wait = 20; ; wait = Math.min(wait * 2, 400)) {
    try {
      const response = await fetch(...request);
      if (response.status < 500 && response.status !== 429) return response;
      await response.arrayBuffer();
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
    }
    repeated++;
    await sleep(wait);
  }
}

function producer(stream, epoch) {
  const errors = [];
  const onError = (error) => errors.push(error);
  return { made: new IdempotentProducer(stream, "writer", { epoch, fetch: persistent, onError }), errors };
}

async function write(producer, messages, pause) {
  for (const message of messages) {
    producer.made.append(message);
    await sleep(pause);
  }
  await producer.made.flush();
  if (producer.errors.length) throw producer.errors[0];
}

async function writeAll({ stream, messages }) {
  const pause = (seconds * 1000) / messages.length;
  const half = Math.floor(messages.length / 2);
  const zombie = producer(stream, 3);
  await write(zombie, messages.slice(0, half), pause);
  const successor = producer(stream, 4);
  await write(successor, messages.slice(half, half + 1), pause);
  const writing = write(successor, messages.slice(half + 1, -1), pause);
  for (let tries = 0; tries < 5; tries++) {
    zombie.made.append(messages[0]);
    await zombie.made.flush().catch(() => {});
    await sleep(pause);
  }
  await writing;
  await successor.made.close(messages.at(-1));
  const fenced = zombie.errors.filter((error) => error instanceof StaleEpochError && error.currentEpoch === 4).length;
  return { url: stream.url, fenced, errors: zombie.errors.map(String) };
}

const streams = await Promise.all(
  JSON.parse(readFileSync(plan)).map(async ([url, contentType, messages]) => ({
    stream: await DurableStream.create({ url, contentType }),
    messages: messages.map((message) => new Uint8Array(Buffer.from(message, "base64"))),
  })),
);
say("created");
say("written", { streams: await Promise.all(streams.map(writeAll)), repeated });
