// runTools of OpenAI's SDK: runs the tools that an answer calls, and asks again with their results.
import OpenAI from "openai";
import { say } from "./say.mjs";

const [baseURL, streamed, ...models] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });

for (const model of models) {
  const called = [];
  const weather = {
    name: "weather",
    description: "Tell the weather.",
    parameters: { type: "object", properties: { city: { type: "string" } } },
    parse: JSON.parse,
    function: ({ city }) => (called.push(city), "3 degrees"),
  };
  const runner = client.chat.completions.runTools({
    model,
    stream: streamed === "true",
    messages: [{ role: "user", content: "How cold is it?" }],
    tools: [{ type: "function", function: weather }],
  });
  say("ran", { model, called, content: await runner.finalContent() });
}
process.exit(0);
