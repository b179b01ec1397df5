// Run by tests/clients/test_js_client.py against real pods: follows a stream, and prints one JSON object a line.
import { follow } from "baton-stream";

const [url, mode, token] = process.argv.slice(2);
const say = (event, fields = {}) => console.log(JSON.stringify({ event, ...fields }));

/** A `fetch` whose responses have no body that can be read as it arrives, as React Native's. */
async function whole(url, init) {
  const response = await fetch(url, init);
  return { status: response.status, ok: response.ok, headers: response.headers, text: () => response.text() };
}

const options = {
  onDisconnect: ({ error, lastEventId }) => say("disconnected", { code: error.code, lastEventId }),
  ...(token && { token: () => token }),
  ...(mode === "poll" && { fetch: whole }),
  ...(mode === "snapshot" && { snapshot: true }),
};
const answer = follow(url, options);
const ids = [];
let text = "";
try {
  for await (const event of answer) {
    ids.push(answer.lastEventId);
    if (event.type === "snapshot") text = event.text;
    if (event.type === "text") text += event.delta;
    if (text.includes("word299 ") && !text.includes("word300 ")) say("half");
    if (event.type === "done") say("whole", { ids, text, done: event });
  }
} catch (error) {
  say("refused", { name: error.name, code: error.code, status: error.status, retryable: error.retryable });
}
