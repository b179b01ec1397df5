// What an app gets from React Native and Expo. `phone` is what happens to it.
import { createElement } from "react";

const listeners = { app: new Set(), network: new Set() };
const becomes = (state) => listeners.app.forEach((listener) => listener(state));
const send = globalThis.fetch;
let network = { isGone: false };

// Silence counts as a lost connection after 45 seconds. Here it never does, so only the app can notice.
const later = globalThis.setTimeout;
globalThis.setTimeout = (run, milliseconds) => later(run, milliseconds >= 45_000 ? 2 ** 31 - 1 : milliseconds);

/** The connections of a network that is gone are silent: no error says so. */
function loseNetwork() {
  network.isGone = true;
  network = { isGone: false };
}

export const phone = {
  requests: [],
  becomes,
  sleeps: () => {
    becomes("background");
    loseNetwork();
  },
  wakes: () => becomes("active"),
  joins: (type) => {
    loseNetwork();
    listeners.network.forEach((listener) => listener({ type, isConnected: true }));
  },
};

export const AppState = { addEventListener: (_change, listener) => listeners.app.add(listener) };
export const addNetworkStateListener = (listener) => listeners.network.add(listener);

/** Expo's `fetch`. */
export async function fetch(url, init) {
  phone.requests.push(`${init.method} ${new URL(url).pathname}`);
  const [response, through] = [await send(url, init), network];
  if (!response.ok || !response.body) return response;
  const reader = response.body.getReader();
  const body = new ReadableStream({
    async pull(controller) {
      const { done, value } = await reader.read();
      if (through.isGone) await aborted(init.signal);
      if (done) controller.close();
      else controller.enqueue(value);
    },
    cancel: (reason) => reader.cancel(reason),
  });
  return new Response(body, response);
}

function aborted(signal) {
  return new Promise((_resolve, reject) => {
    const abort = () => reject(new Error("The request was aborted."));
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort);
  });
}

export const View = ({ children }) => createElement("div", null, children);
export const Text = ({ children }) => createElement("span", null, children);
export const Button = ({ title, onPress }) => createElement("button", { onClick: onPress }, title);
