// `eventsource`: comes back by itself after the last id, until there is nothing left.
import { say } from "./react.mjs";
import { follow } from "./follow.mjs";

const [events_url] = process.argv.slice(2);
const ids = [];
let text = "";
let errors = 0;

// It does not keep the process alive while it waits to reconnect.
const awake = setInterval(() => {}, 1000);
const source = follow({ events_url }, (event, id) => {
  ids.push(id);
  if (event.type === "text") text += event.delta;
  if (event.delta === "word299 ") say("half");
  if (event.type === "done") {
    clearInterval(awake);
    say("whole", { ids, text, errors });
  }
});
source.onerror = () => errors++;
