// A React page without a browser: renders a component that only calls a hook.
import { Window } from "happy-dom";

export { say } from "./say.mjs";

const window = new Window({ url: "http://localhost/" });
globalThis.window = window;
globalThis.document = window.document;
globalThis.navigator ??= window.navigator;

const { createElement, useEffect } = await import("react");
const { createRoot } = await import("react-dom/client");

/** Render a hook; `current` is what it returned last, and `until` waits for what makes a condition hold. */
export function mount(useHook) {
  const watchers = new Set();
  const page = {
    current: undefined,
    until: (holds) =>
      new Promise((resolve) => {
        const watch = () => holds(page.current) && (watchers.delete(watch), resolve(page.current));
        watchers.add(watch);
        if (page.current !== undefined) watch();
      }),
    unmount: () => root.unmount(),
  };
  function Probe() {
    const value = useHook();
    useEffect(() => {
      page.current = value;
      for (const watch of [...watchers]) watch();
    });
    return null;
  }
  const root = createRoot(document.createElement("div"));
  root.render(createElement(Probe));
  return page;
}

const send = globalThis.fetch;
let asked = 0;
globalThis.fetch = (...request) => send(...request).finally(() => asked++);

/** Wait until a page has had the answer to what it asks for as it loads: only then its `status` is about what follows. */
export async function loaded() {
  while (asked === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  await new Promise((resolve) => setTimeout(resolve));
}

/** The text of a UI message. */
export function textOf(message) {
  return (message?.parts ?? []).map((part) => (part.type === "text" ? part.text : "")).join("");
}
