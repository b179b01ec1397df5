// The reference server of Durable Streams: in memory, or with its files in a folder.
import { DurableStreamTestServer } from "@durable-streams/server";

const [port, dataDir] = process.argv.slice(2);
await new DurableStreamTestServer({ port: Number(port), host: "127.0.0.1", dataDir }).start();
