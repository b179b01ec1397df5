// The documentation's page for `baton-stream`: how often the answer grew, and what it is.
import { ask } from "./follow_answer.mjs";
import { say } from "./say.mjs";

let text = "";
let grew = 0;
for await (const answer of ask({ generator: "tap", input: null })) {
  if (answer !== text) grew++;
  text = answer;
  if (text.endsWith("word299 ")) say("half");
}
say("whole", { text, grew });
