// Run by tests/clients/test_js_client.py against real pods: produces words that the test asks for on standard input, one
// number a line, and prints one JSON object a line.
import { createInterface } from "node:readline";
import { produce } from "baton-stream/produce";

const [url, token] = process.argv.slice(2);
const say = (event, fields = {}) => console.log(JSON.stringify({ event, ...fields }));
const asked = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function* words() {
  for (let word = 0; ; ) {
    const { value, done } = await asked.next();
    if (done) return;
    for (const end = word + Number(value); word < end; word++) {
      yield `word${word} `;
      await new Promise(setImmediate); // so that there are many appends
    }
  }
}

const answer = await produce(({ signal }) => {
  signal.addEventListener("abort", () => say("stopped", { code: signal.reason.code }));
  return words();
}, { create: { url, metadata: { made: "here" }, ...(token && { token }) } });
say("created", { id: answer.id, events_url: answer.eventsUrl, token: answer.token });
say("ended", { result: await answer.done });
process.exit();
