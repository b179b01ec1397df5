// `@microsoft/fetch-event-source`: creates and follows in one request, and repeats that to come back.
import { say } from "./react.mjs";
import { ask } from "./ask.mjs";

const [generator] = process.argv.slice(2);
const ids = [];
let text = "";
let errors = 0;

function onEvent(event, id) {
  ids.push(id);
  if (event.type === "text") text += event.delta;
  if (event.delta === "word299 ") say("half");
}

// The window that a browser would have is another package's here, and so is its `fetch`.
await ask({ generator, input: "Hello" }, onEvent, { fetch, onerror: () => void errors++ });
say("whole", { ids, text, errors });
process.exit(0);
