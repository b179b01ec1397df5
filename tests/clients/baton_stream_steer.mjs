// The documentation's page for `baton-stream`: answer what a generator waits for, and stop a stream.
import { create } from "baton-stream";
import { approveAll, stop } from "./steer.mjs";
import { say } from "./say.mjs";

const [url] = process.argv.slice(2);
let text = "";
for await (const event of approveAll({ generator: "careful", input: null })) if (event.type === "text") text += event.delta;
const { id } = await create(url, { generator: "tap", input: null });
say("over", { text, id, status: (await stop(id)).status });
