// React 18 and 19 beside each other: each bundled with the package, which resolves `react` as an application would.
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";

const ENTRY = `
  export * as React from "react";
  export { useBaton } from "baton-stream/react";
  export const required = require("baton-stream/react").useBaton;
  export const client = () => require("react-dom/client");
  export const server = () => require("react-dom/server");
`;

const folder = mkdtempSync(join(tmpdir(), "baton-react-"));
process.on("exit", () => rmSync(folder, { recursive: true }));

/** Return React, react-dom and the hook, of this major version. */
export async function react(version) {
  const outfile = join(folder, `${version}.cjs`);
  const alias = version === 18 ? { react: "react-18", "react-dom": "react-dom-18" } : {};
  await build({
    stdin: { contents: ENTRY, resolveDir: "." },
    ...{ outfile, alias, bundle: true, platform: "node", format: "cjs", define: { "process.env.NODE_ENV": '"development"' } },
  });
  const loaded = createRequire(import.meta.url)(outfile);
  if (!loaded.React.version.startsWith(`${version}.`)) throw new Error(`This is React ${loaded.React.version}.`);
  return loaded;
}
