// The demo's page: asks, shows the answer, kills the pod that serves it, and marks where another pod continues.

import { Answer } from "../assets/answer.js";
import { NONE, byId, clock, count, el, keyed, plural, setAttribute, setText, span } from "../assets/dom.js";
import { follow, refusal } from "../assets/follow.js";
import { podState } from "../assets/process.js";
import { Tail } from "../assets/scrolling.js";

const PODS_EVERY_MILLISECONDS = 1000;
// The states of a connection, with the shape and color of each.
const STATES = { asking: "queued", streaming: "running", reconnecting: "warned" };

const pods = new Map();
const killed = new Map(); // when, in milliseconds since 1970, by the pod's name
const answer = new Answer({ reasoning: byId("part-reasoning"), tools: byId("part-tools"), text: byId("part-text") });
const tail = new Tail(byId("answer"), byId("newest"));
let play = null;

// One question, and what has arrived of its answer.
class Play {
  constructor(question) {
    this.question = question;
    this.stopped = new AbortController();
    this.pod = null;
    this.hasConnection = false;
    this.last = 0;
    this.seen = new Set();
    this.repeated = 0;
    this.reconnects = 0;
    for (const id of ["nothing", "judged", "trouble", "quiet"]) byId(id).hidden = true;
    answer.clear();
    byId("log").replaceChildren();
    setAttribute(byId("answer"), "aria-busy", "true");
    this.show("asking");
    tail.start({ pinned: true });
  }

  async run() {
    try {
      const body = JSON.stringify({ input: this.question, generator: "replay", metadata: { made_by: "demo page" } });
      const response = await fetch("v1/streams", { method: "POST", body, signal: this.stopped.signal });
      if (!response.ok) throw await refusal(response);
      const { events_url } = await response.json();
      await follow(events_url, {
        signal: this.stopped.signal,
        onConnected: (connected) => this.connected(connected),
        onEvent: (seq, event) => this.take(seq, event),
        onDropped: ({ reason, cursor }) => this.dropped(reason, cursor),
      });
    } catch (error) {
      if (!this.stopped.signal.aborted) this.failed(error);
    }
  }

  connected({ pod, cursor }) {
    if (this.pod !== null) {
      this.reconnects += 1;
      answer.mark(`${pod} from here`);
    }
    log(cursor ? `${pod} continues after event ${cursor}` : `${pod} answers`);
    this.pod = pod;
    this.hasConnection = true;
    allowKill(true);
    this.show("streaming");
  }

  dropped(reason, cursor) {
    if (this.hasConnection) log(`${reason} Event ${cursor} was the last.`);
    this.hasConnection = false; // further tries are not news
    allowKill(false);
    this.show("reconnecting");
  }

  take(seq, event) {
    if (this.seen.has(seq)) this.repeated += 1;
    this.seen.add(seq);
    this.last = Math.max(this.last, seq);
    answer.take(event);
    if (event.type === "done") this.judge(event);
    this.show(event.type === "done" ? event.status : "streaming");
  }

  judge(done) {
    let missing = 0;
    for (let seq = 1; seq <= this.last; seq++) if (!this.seen.has(seq)) missing += 1;
    const judged = byId("judged");
    judged.hidden = false;
    setAttribute(judged, "data-whole", String(!missing && !this.repeated));
    setText(judged, `${plural(this.seen.size, "event")}, numbered 1 to ${count(this.last)}: ${missing} missing, ${this.repeated} repeated.`);
    log(`The answer ${done.status === "completed" ? "is complete" : done.status === "failed" ? "failed" : "was cancelled"}.`);
    this.over();
  }

  failed(error) {
    byId("trouble").hidden = false;
    const unreachable = error instanceof TypeError; // what `fetch` throws
    setText(byId("trouble"), unreachable ? "No pod answers. Check that the demo still runs, and ask again." : error.message);
    this.show("failed");
    byId("nothing").hidden = this.last > 0;
    setText(byId("nothing"), "There is no answer.");
    this.over();
    tail.stop();
  }

  over() {
    allowKill(false);
    setAttribute(byId("answer"), "aria-busy", null);
    // Once the last lines are in view.
    requestAnimationFrame(() => requestAnimationFrame(() => this === play && tail.stop()));
  }

  show(state) {
    setText(byId("pod"), this.pod ?? NONE);
    setText(byId("cursor"), count(this.last));
    setText(byId("reconnects"), count(this.reconnects));
    setAttribute(byId("state"), "data-state", STATES[state] ?? state);
    setText(byId("state"), state);
    setText(byId("kill"), this.pod ? `Kill this pod (${this.pod})` : "Kill this pod");
  }
}

function log(text) {
  const list = byId("log");
  list.append(el("li", {}, `${clock(Date.now())}  ${text}`));
  list.scrollTop = list.scrollHeight;
}

// A button that is `disabled` would lose the focus.
const allowKill = (allowed) => setAttribute(byId("kill"), "aria-disabled", allowed ? null : "true");

async function kill() {
  if (byId("kill").hasAttribute("aria-disabled")) return;
  const name = play.pod;
  allowKill(false);
  log(`kill -9 ${name}`);
  killed.set(name, Date.now());
  try {
    const body = JSON.stringify({ pod: name });
    const response = await fetch("demo/kill", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    if (response.ok) return;
    log((await refusal(response)).message);
    killed.delete(name);
  } catch {
    // The pod that was asked was the one that died.
  }
}

async function showPods() {
  if (document.visibilityState === "visible") {
    try {
      const response = await fetch("console/overview", { signal: AbortSignal.timeout(3000), cache: "no-store" });
      if (response.ok) listPods((await response.json()).pods);
    } catch {
      // It asks again.
    }
  }
  setTimeout(showPods, PODS_EVERY_MILLISECONDS);
}

// The newest row of each name: a pod that was killed leaves one behind.
function listPods(all) {
  const newest = new Map();
  for (const pod of all) {
    const known = newest.get(pod.name);
    if (!known || known.started_at < pod.started_at) newest.set(pod.name, pod);
  }
  const make = () => el("tr", {}, el("th", { scope: "row" }), el("td", {}, el("span", { class: "state" })), el("td", { class: "number" }));
  keyed(byId("pods"), pods, [...newest.values()], (pod) => pod.name, make, (row, pod) => {
    const started = Date.parse(pod.started_at);
    const dead = started < killed.get(pod.name);
    const { state, label } = dead ? { state: "failed", label: "killed" } : podState(pod);
    setText(row.children[0], pod.name);
    setAttribute(row.children[1].firstChild, "data-state", state);
    setText(row.children[1].firstChild, label);
    setText(row.children[2], dead || !pod.alive ? "" : `up ${span((Date.now() - started) / 1000)}`);
  });
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  play?.stopped.abort();
  play = new Play(byId("prompt").value);
  play.run();
});
byId("ask").addEventListener("click", (event) => {
  const { question } = event.target.dataset;
  if (!question) return;
  byId("prompt").value = question;
  byId("ask").requestSubmit();
});
byId("kill").addEventListener("click", kill);
showPods();
