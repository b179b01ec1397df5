// Reads streams to their ends, and continues from the last offset after each cut.
//
// usage: reader.mjs PLAN, where PLAN is a file of JSON: for each reader [url, "long-poll" or "sse", whether it is JSON]
//
// By long-poll the client repeats a request that fails. By SSE it reconnects after a clean end, and a cut is an error for
// the application. The application continues after both kinds of errors alike.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { stream } from "@durable-streams/client";

const [plan] = process.argv.slice(2);

async function read([url, live, isJson]) {
  const taken = [];
  let offset = "-1";
  let closed = false;
  let cuts = 0;
  let end;
  const ended = new Promise((resolve) => (end = resolve));

  function take(batch) {
    if (isJson) taken.push(...batch.items);
    else taken.push(Buffer.from(batch.data));
    offset = batch.offset;
    closed = batch.streamClosed;
    if (closed) end();
  }

  while (!closed) {
    try {
      const response = await stream({ url, offset, live, sseResilience: { logWarnings: false } });
      if (isJson) response.subscribeJson(take);
      else response.subscribeBytes(take);
      await response.closed;
      // The client notes the end of a stream before it has passed on the last batch.
      if (response.streamClosed) await ended;
    } catch (error) {
      if (error.status < 500) throw error;
    }
    if (closed) break;
    cuts++;
    await sleep(50);
  }
  return { url, live, cuts, taken: isJson ? taken : Buffer.concat(taken).toString("base64") };
}

const readers = await Promise.all(JSON.parse(readFileSync(plan)).map(read));
console.log(JSON.stringify({ event: "read", readers }));
