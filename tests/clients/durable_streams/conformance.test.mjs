// The protocol's own conformance suite, as its package documents it, for the server whose address is in the file `url`.
import { readFileSync } from "node:fs";
import { runConformanceTests } from "@durable-streams/server-conformance-tests";

runConformanceTests({ baseUrl: readFileSync(new URL("url", import.meta.url), "utf8") });
