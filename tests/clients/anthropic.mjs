// Anthropic's npm client: it cannot come back to a message, but the same request with the same key gets it again.
import Anthropic from "@anthropic-ai/sdk";
import { say } from "./say.mjs";

const [first, second] = process.argv.slice(2);
const body = { model: "tap", max_tokens: 100, messages: [{ role: "user", content: "Hello" }] };

function ask(baseURL) {
  const client = new Anthropic({ baseURL, apiKey: "none", maxRetries: 0 });
  return client.messages.stream(body, { headers: { "Idempotency-Key": "npm" } });
}

const cut = ask(first);
let text = "";
cut.on("text", (delta) => {
  text += delta;
  if (delta === "word299 ") say("half");
});
try {
  await cut.finalMessage();
  say("complete");
} catch (error) {
  say("broken", { text, error: error.constructor.name });
}
const message = await ask(second).finalMessage();
say("whole", { id: message.id, text: message.content[0].text, reason: message.stop_reason });

const failed = new Anthropic({ baseURL: second, apiKey: "none", maxRetries: 0 });
try {
  await failed.messages.create({ ...body, model: "nobody" });
} catch (error) {
  say("refused", { kind: error.constructor.name, type: error.type, code: error.errorCode, id: Boolean(error.requestID) });
}
process.exit(0);
