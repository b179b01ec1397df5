// The demo's page: asks, watches the answer, kills the pod that tells it, and shows where another one went on.

import { byId, clock, count, el, keyed, plural, setAttribute, setText, span } from "../assets/dom.js";
import { follow, refusal } from "../assets/follow.js";

const PODS_EVERY_MILLISECONDS = 1000;

const pods = new Map();
let play = null;

// One answer: what came of it, and from whom.
class Play {
  constructor(question) {
    this.question = question;
    this.stopped = new AbortController();
    this.pod = null;
    this.last = 0;
    this.seen = new Set();
    this.repeated = 0;
    this.reconnects = 0;
    this.seamDue = false;
    this.calls = new Map();
    byId("nothing").hidden = true;
    byId("judged").hidden = true;
    byId("trouble").hidden = true;
    for (const id of ["reasoning", "tools", "text", "log"]) byId(id).replaceChildren();
    byId("quiet").hidden = true;
    this.show("asks");
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
      if (this.stopped.signal.aborted) return;
      byId("trouble").hidden = false;
      setText(byId("trouble"), error.message);
      this.show("failed");
      byId("kill").disabled = true;
    }
  }

  connected({ pod, cursor }) {
    if (this.pod !== null) {
      this.reconnects += 1;
      this.seamDue = true;
      log(cursor ? `${pod} goes on after event ${cursor}` : `${pod} answers`);
    } else log(`${pod} answers`);
    this.pod = pod;
    byId("kill").disabled = false;
    this.show("streams");
  }

  dropped(reason, cursor) {
    log(`${reason} Event ${cursor} was the last.`);
    byId("kill").disabled = true;
    this.show("reconnects");
  }

  take(seq, event) {
    if (this.seen.has(seq)) this.repeated += 1;
    this.seen.add(seq);
    this.last = Math.max(this.last, seq);
    if (event.type === "text") this.append(byId("text"), event.delta);
    else if (event.type === "reasoning") this.append(byId("reasoning"), event.delta);
    else if (event.type === "tool_call") this.call(event);
    else if (event.type === "reset") for (const id of ["reasoning", "tools", "text"]) byId(id).replaceChildren();
    if (event.type === "done") this.judge(event);
    this.show(event.type === "done" ? event.status : "streams");
  }

  append(node, delta) {
    if (this.seamDue) {
      this.seamDue = false;
      node.append(el("span", { class: "seam", "data-seam": this.pod }, `${this.pod} from here`));
    }
    if (node.lastChild?.nodeType !== Node.TEXT_NODE) node.append(document.createTextNode(""));
    node.lastChild.appendData(delta);
  }

  call(event) {
    let call = this.calls.get(event.index);
    if (!call || (event.id && call.id && event.id !== call.id)) {
      call = { id: event.id, name: el("code"), body: el("pre") };
      this.calls.set(event.index, call);
      byId("tools").append(el("article", { class: "tool" }, el("h4", {}, call.name), call.body));
    }
    call.id = event.id || call.id;
    if (event.name) setText(call.name, event.name);
    call.body.append(event.arguments_delta ?? "");
  }

  judge(done) {
    let missing = 0;
    for (let seq = 1; seq <= this.last; seq++) if (!this.seen.has(seq)) missing += 1;
    const judged = byId("judged");
    judged.hidden = false;
    setAttribute(judged, "data-whole", String(!missing && !this.repeated));
    setText(judged, `${plural(this.seen.size, "event")}, numbered 1 to ${count(this.last)}: ${missing} missing, ${this.repeated} repeated.`);
    log(`It is ${done.status}.`);
    byId("kill").disabled = true;
  }

  show(state) {
    setText(byId("pod"), this.pod ?? "–");
    setText(byId("cursor"), count(this.last));
    setText(byId("reconnects"), count(this.reconnects));
    setText(byId("state"), state);
    setText(byId("kill"), this.pod ? `Kill this pod (${this.pod})` : "Kill this pod");
  }
}

function log(text) {
  const list = byId("log");
  list.append(el("li", {}, `${clock(Date.now())}  ${text}`));
  list.scrollTop = list.scrollHeight;
}

async function kill() {
  const name = play.pod;
  byId("kill").disabled = true;
  log(`kill -9 ${name}`);
  try {
    const body = JSON.stringify({ pod: name });
    const response = await fetch("demo/kill", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    if (!response.ok) log((await refusal(response)).message);
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
    const quiet = pod.silent_seconds > 3;
    setText(row.children[0], pod.name);
    setAttribute(row.children[1].firstChild, "data-state", quiet ? "failed" : "running");
    setText(row.children[1].firstChild, quiet ? "dead" : pod.state);
    setText(row.children[2], quiet ? "" : `up ${span((Date.now() - Date.parse(pod.started_at)) / 1000)}`);
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
byId("prompt").select();
showPods();
