// A page whose address names a cursor, with an EventSource that remembers the newer one: `eventsource` sends it in a
// header when it reconnects, `event-source-polyfill` adds it to the address.
import { EventSource } from "eventsource";
import polyfill from "event-source-polyfill";
import { say } from "./say.mjs";

const [implementation, url] = process.argv.slice(2);
const Source = implementation === "eventsource" ? EventSource : polyfill.EventSourcePolyfill;
const ids = [];

// The first does not keep the process alive while it waits to reconnect.
const awake = setInterval(() => {}, 1000);
const source = new Source(url);
source.onmessage = ({ data, lastEventId }) => {
  const event = JSON.parse(data);
  ids.push(Number(lastEventId));
  if (event.delta === "word299 ") say("half");
  if (event.type === "done") {
    source.close();
    clearInterval(awake);
    say("whole", { ids });
  }
};
