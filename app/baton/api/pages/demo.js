// The demo's page: asks, shows the answer, kills the pod that serves it or the worker that writes it, and marks where
// another one continues.

import { Answer } from "../assets/answer.js";
import { NONE, byId, clock, count, el, keyed, plural, setAttribute, setText, span } from "../assets/dom.js";
import { follow, refusal } from "../assets/follow.js";
import { podState, workerState } from "../assets/process.js";
import { Tail } from "../assets/scrolling.js";

const PROCESSES_EVERY_MILLISECONDS = 1000;
// The states of an answer, with the shape and color of each.
const STATES = { asking: "queued", streaming: "running", reconnecting: "warned", waiting: "warned" };
const KILL_BUTTONS = { pod: "kill", worker: "kill-worker" };

const rows = { pods: new Map(), workers: new Map() };
const killed = new Map(); // when, in milliseconds since 1970, by the name of the pod or worker
const answer = new Answer({ reasoning: byId("part-reasoning"), tools: byId("part-tools"), text: byId("part-text") });
const tail = new Tail(byId("answer"), byId("newest"));
let play = null;

// One question, and what has arrived of its answer.
class Play {
  constructor(question) {
    this.question = question;
    this.stopped = new AbortController();
    this.pod = null;
    this.worker = null;
    this.streamId = null;
    this.hasConnection = false;
    this.podIsKilled = false;
    this.waitsSince = null; // for another worker, in milliseconds since 1970
    this.isOver = false;
    this.continued = 0;
    this.resets = 0;
    this.last = 0;
    this.seen = new Set();
    this.repeated = 0;
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
      const { id, events_url } = await response.json();
      this.streamId = id;
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
    if (this.pod !== null) answer.mark(`${pod} from here`);
    log(cursor ? `${pod} continues after event ${cursor}` : `${pod} answers`);
    this.pod = pod;
    this.hasConnection = true;
    this.podIsKilled = false;
    if (!this.isWaiting) this.findWorker(); // while it waits, its row names the dead one
    this.show(this.isWaiting ? "waiting" : "streaming");
  }

  get isWaiting() {
    return this.waitsSince !== null;
  }

  // Asks which worker writes the answer.
  async findWorker() {
    try {
      const response = await fetch(`demo/streams/${this.streamId}`, { signal: this.stopped.signal, cache: "no-store" });
      const { worker } = response.ok ? await response.json() : {};
      if (this === play && worker) this.worker = worker;
    } catch {
      return; // the pod that was asked died: the next connection asks again
    }
    if (this === play) this.showProcesses();
  }

  async resumed(after) {
    const pause = this.isWaiting ? `, ${((Date.now() - this.waitsSince) / 1000).toFixed(1)} s later` : "";
    this.continued += 1;
    this.waitsSince = null;
    await this.findWorker();
    if (this === play) log(`${this.worker ?? "Another worker"} continues after event ${after}${pause}`);
  }

  restarted() {
    this.resets += 1;
    this.waitsSince = null;
    this.findWorker();
    log("The answer starts over");
  }

  kills(role) {
    if (role === "pod") this.podIsKilled = true;
    else this.waitsSince = Date.now();
    this.show(role === "pod" ? "streaming" : "waiting");
  }

  keeps(role) {
    if (role === "pod") this.podIsKilled = false;
    else this.waitsSince = null;
    this.show("streaming");
  }

  dropped(reason, cursor) {
    if (this.hasConnection) log(`${reason} Event ${cursor} was the last.`);
    this.hasConnection = false; // further tries are not news
    this.show("reconnecting");
  }

  take(seq, event) {
    if (this.seen.has(seq)) this.repeated += 1;
    this.seen.add(seq);
    this.last = Math.max(this.last, seq);
    answer.take(event);
    if (event.type === "resumed") this.resumed(seq - 1);
    else if (event.type === "reset") this.restarted();
    else if (event.type === "done") this.judge(event);
    else if (this.seen.size === 1) this.findWorker();
    this.show(event.type === "done" ? event.status : this.isWaiting ? "waiting" : "streaming");
  }

  judge(done) {
    let missing = 0;
    for (let seq = 1; seq <= this.last; seq++) if (!this.seen.has(seq)) missing += 1;
    const judged = byId("judged");
    judged.hidden = false;
    setAttribute(judged, "data-whole", String(!missing && !this.repeated));
    const events = `${plural(this.seen.size, "event")}, numbered 1 to ${count(this.last)}: ${missing} missing, ${this.repeated} repeated.`;
    const workers = this.resets ? " Another worker started over." : this.continued ? " Another worker continued it." : "";
    setText(judged, events + workers);
    log(`The answer ${done.status === "completed" ? "is complete" : done.status === "failed" ? "failed" : "was cancelled"}.`);
    this.over();
  }

  failed(error) {
    byId("trouble").hidden = false;
    const unreachable = error instanceof TypeError; // what `fetch` throws
    setText(byId("trouble"), unreachable ? "No pod answers. Check that the demo still runs, and ask again." : error.message);
    byId("nothing").hidden = this.last > 0;
    setText(byId("nothing"), "There is no answer.");
    this.over();
    this.show("failed");
    tail.stop();
  }

  over() {
    this.isOver = true;
    setAttribute(byId("answer"), "aria-busy", null);
    // Once the last lines are in view.
    requestAnimationFrame(() => requestAnimationFrame(() => this === play && tail.stop()));
  }

  show(state) {
    setText(byId("cursor"), count(this.last));
    setAttribute(byId("state"), "data-state", STATES[state] ?? state);
    setText(byId("state"), state);
    this.showProcesses();
  }

  showProcesses() {
    const mayKill = { pod: this.hasConnection && !this.podIsKilled, worker: this.worker !== null && !this.isWaiting };
    for (const role of ["pod", "worker"]) {
      const name = role === "worker" && this.isWaiting ? null : this[role];
      setText(byId(role), name ?? NONE);
      setText(byId(KILL_BUTTONS[role]), name ? `Kill this ${role} (${name})` : `Kill this ${role}`);
      // A button that is `disabled` would lose the focus.
      setAttribute(byId(KILL_BUTTONS[role]), "aria-disabled", mayKill[role] && !this.isOver ? null : "true");
    }
  }
}

function log(text) {
  const list = byId("log");
  list.append(el("li", {}, `${clock(Date.now())}  ${text}`));
  list.scrollTop = list.scrollHeight;
}

async function kill(role) {
  if (byId(KILL_BUTTONS[role]).hasAttribute("aria-disabled")) return;
  const playing = play;
  const name = playing[role];
  playing.kills(role);
  log(`kill -9 ${name}`);
  killed.set(name, Date.now());
  try {
    const body = JSON.stringify({ role, name });
    const response = await fetch("demo/kill", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    if (response.ok) return;
    log((await refusal(response)).message);
    killed.delete(name);
    playing.keeps(role);
  } catch {
    // The pod that was asked was the one that died.
  }
}

async function showOverview() {
  if (document.visibilityState === "visible") {
    try {
      const response = await fetch("console/overview", { signal: AbortSignal.timeout(3000), cache: "no-store" });
      if (response.ok) {
        const { pods, workers } = await response.json();
        list("pods", pods, podState);
        list("workers", workers, workerState);
      }
    } catch {
      // It asks again.
    }
  }
  setTimeout(showOverview, PROCESSES_EVERY_MILLISECONDS);
}

// The newest row of each name: a pod or worker that was killed leaves one behind.
function list(kind, all, stateOf) {
  const newest = new Map();
  for (const process of all) {
    const known = newest.get(process.name);
    if (!known || known.started_at < process.started_at) newest.set(process.name, process);
  }
  const make = () => el("tr", {}, el("th", { scope: "row" }), el("td", {}, el("span", { class: "state" })), el("td", { class: "number" }));
  keyed(byId(kind), rows[kind], [...newest.values()], (process) => process.name, make, (row, process) => {
    const started = Date.parse(process.started_at);
    const dead = started < killed.get(process.name);
    const { state, label } = dead ? { state: "failed", label: "killed" } : stateOf(process);
    setText(row.children[0], process.name);
    setAttribute(row.children[1].firstChild, "data-state", state);
    setText(row.children[1].firstChild, label);
    setText(row.children[2], dead || !process.alive ? "" : `up ${span((Date.now() - started) / 1000)}`);
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
for (const [role, id] of Object.entries(KILL_BUTTONS)) byId(id).addEventListener("click", () => kill(role));
showOverview();
