// resumable-stream with Redis, as two processes: `producer` makes the streams, `relay` hands them to viewers elsewhere.
import { once } from "node:events";
import { createServer } from "node:http";
import { createClient } from "redis";
import { createResumableStreamContext } from "resumable-stream/redis";

const [role, port, redisPort] = process.argv.slice(2);
const TICK_MILLISECONDS = 4;
const WORDS = [" the", " answer", " of", " a", " pod", " is", " handed", " on", " to", " another", ".", " It", " goes"];

const client = () => createClient({ url: `redis://127.0.0.1:${redisPort}` }).on("error", console.error);
const [publisher, subscriber] = await Promise.all([client().connect(), client().connect()]);
const streams = createResumableStreamContext({ waitUntil: null, publisher, subscriber });

// Node sets `timeOrigin` once, and its clock then drifts from the machine's. `Date.now()` is cut to milliseconds, so the
// largest difference that is seen within a second is the best.
let offset = performance.timeOrigin;
let best = -Infinity;
let judgedAt = 0;
function setClock() {
  const now = performance.now();
  best = Math.max(best, Date.now() - now);
  if (now < judgedAt + 1000) return;
  [offset, best, judgedAt] = [best, -Infinity, now];
}

// One timer for all streams: each waiter wakes in the first turn after its time.
const waiting = new Set();
const clock = () => offset + performance.now();
const until = (at) => new Promise((resolve) => waiting.add({ at, resolve }));
setInterval(() => {
  setClock();
  const now = clock();
  for (const waiter of waiting) {
    if (waiter.at > now) continue;
    waiting.delete(waiter);
    waiter.resolve();
  }
}, TICK_MILLISECONDS);

// A stream of marked tokens, as server-sent events.
function tokens({ tokens: count, rate, pause, stays }) {
  const start = clock() + (pause + Math.random() / rate) * 1000;
  let number = 0;
  return new ReadableStream(
    {
      async pull(controller) {
        const at = start + (number / rate) * 1000 + (number === count ? stays * 1000 : 0);
        if (at > clock()) await until(at);
        if (number === count) return controller.close();
        const word = WORDS[number++ % WORDS.length];
        controller.enqueue(`data: {"type":"text","delta":"@${number},${Math.round(clock() * 1000)}@${word}"}\n\n`);
      },
    },
    { highWaterMark: 0 },
  );
}

// The stream's own reader is left out, which costs it least: all viewers are at the relay.
async function produce(url, response) {
  const given = Object.fromEntries([...url.searchParams].map(([name, value]) => [name, Number(value)]));
  await streams.createNewResumableStream(url.pathname, () => tokens(given));
  response.writeHead(201).end();
}

async function relay(url, response) {
  const stream = await streams.resumeExistingStream(url.pathname);
  if (!stream) return response.writeHead(204).end();
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
  response.flushHeaders();
  const reader = stream.getReader();
  response.on("close", () => reader.cancel().catch(() => {}));
  for (;;) {
    const { done, value } = await reader.read();
    if (done || response.destroyed) break;
    if (!response.write(value)) await Promise.race([once(response, "drain"), once(response, "close")]);
  }
  response.end();
}

const answer = role === "producer" ? produce : relay;
const server = createServer((request, response) => {
  answer(new URL(request.url, "http://localhost"), response).catch((error) => response.destroy(error));
});
server.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
