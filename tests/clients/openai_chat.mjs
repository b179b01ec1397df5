// OpenAI's npm client: nobody can come back to a completion.
import { say } from "./say.mjs";
import { complete } from "./completions.mjs";

const [model] = process.argv.slice(2);
const deltas = [];
try {
  for await (const delta of complete(model, "Hello")) {
    deltas.push(delta);
    if (delta === "word299 ") say("half");
  }
  say("whole", { deltas });
} catch (error) {
  say("broken", { deltas, error: error.message });
}
process.exit(0);
