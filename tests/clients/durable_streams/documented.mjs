// The documentation's code for the protocol's client: prints the id of the stream that it writes with a key.
//
// usage: documented.mjs KEY [CANCEL], where CANCEL has it write until the stream is cancelled by that key
import { setTimeout as sleep } from "node:timers/promises";
import { write } from "./idempotent_producer.mjs";

const [key, cancels] = process.argv.slice(2);
const say = (event, fields) => console.log(JSON.stringify({ event, ...fields }));

async function* words() {
  yield* ["Hello ", "from ", "Node."];
  if (!cancels) return;
  say("writing");
  while (true) {
    yield "more ";
    await sleep(20);
  }
}

try {
  say("written", { id: await write(words(), key) });
} catch (error) {
  say("failed", { message: error.message });
}
