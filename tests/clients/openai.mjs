// OpenAI's npm client: comes back to a response, after the last event that it has.
import { say } from "./say.mjs";
import { answer } from "./responses.mjs";

const [model] = process.argv.slice(2);
const deltas = [];
for await (const delta of answer(model, "Hello")) {
  deltas.push(delta);
  if (delta === "word299 ") say("half");
}
say("whole", { deltas });
process.exit(0);
