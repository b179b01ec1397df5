// Follows one stream of events to its end.
//
// usage: viewer.mjs URL KEY HALF. `HALF` is the word of which it says that it has it.
import { stream } from "@durable-streams/client";

const [url, key, half] = process.argv.slice(2);
const say = (event, fields) => console.log(JSON.stringify({ event, viewer: "Durable Streams", ...fields }));
const taken = [];
const response = await stream({ url, offset: "-1", live: "sse", headers: { authorization: `Bearer ${key}` } });
await new Promise((resolve) => {
  response.subscribeJson(({ items, streamClosed }) => {
    taken.push(...items);
    if (items.some(({ delta }) => delta?.includes(half))) say("half");
    if (streamClosed) resolve();
  });
});
const text = taken.filter(({ type }) => type === "text").map(({ delta }) => delta).join("");
const { status, error = null } = taken.at(-1);
say("end", { text, status, error });
