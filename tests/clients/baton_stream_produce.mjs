// The documentation's code for `baton-stream/produce`, with the key that it is given.
import { answer } from "./produce_answer.mjs";
import { say } from "./say.mjs";

async function* generate() {
  yield* ["Hello ", "from ", "Node."];
}

const { id, token, done } = await answer(generate, process.argv[2]);
const { status } = await done;
say("written", { id, token, status });
