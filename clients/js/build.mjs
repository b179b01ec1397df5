// Builds dist/: the package as ES modules and as CommonJS, and one file for pages without a bundler.
import { execFileSync } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const tsc = (...options) =>
  execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", ...options], { stdio: "inherit" });

const { name, version } = JSON.parse(readFileSync("package.json", "utf8"));

rmSync("dist", { recursive: true, force: true });
tsc("--outDir", "dist/esm");
tsc("--outDir", "dist/cjs", "--module", "commonjs", "--moduleResolution", "node10", "--ignoreDeprecations", "5.0");
writeFileSync("dist/cjs/package.json", '{ "type": "commonjs" }\n');
await build({
  entryPoints: ["src/index.ts"],
  outfile: "dist/baton-stream.js",
  bundle: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  banner: { js: `// ${name} ${version} (MIT). Built from clients/js by \`make js\`: change it there.` },
});
