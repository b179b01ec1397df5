// Prints how many bytes each entry of the built package adds to a page: bundled, minified and compressed by gzip, as JSON.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const { exports, peerDependencies } = JSON.parse(readFileSync("package.json", "utf8"));
const sizes = {};
for (const [name, entry] of Object.entries(exports).filter(([, { import: file }]) => file)) {
  const { outputFiles } = await build({
    entryPoints: [entry.import],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    external: Object.keys(peerDependencies),
    write: false,
  });
  sizes[name] = gzipSync(outputFiles[0].contents, { level: 9 }).length;
}
process.stdout.write(JSON.stringify(sizes));
