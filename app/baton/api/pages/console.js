// The console: asks a pod for its numbers every second or two while the page is visible, and shows them.

import { Chart } from "./chart.js";
import { NONE, byId, clock, count, el, isLive, keyed, plural, rate, seconds, setAttribute, setText, shortId, showState, span } from "./dom.js";
import { Refused, bearer, refusal } from "./follow.js";
import { lacksHints, podState, withoutReplaced, workerState } from "./process.js";
import { StreamSheet } from "./stream.js";

const EVERY_MILLISECONDS = 1000;
const PATIENCE_MILLISECONDS = 8000;
const HISTORY_SECONDS = 600;
const LONG_QUEUE_SECONDS = 10;
const LATELY_SECONDS = 600;
// For this tab only: a reload asks for no key, and closing the tab forgets it. The policy of this page allows only
// Baton's own scripts.
const KEY = "baton.console.key";

const session = { key: sessionStorage.getItem(KEY), scopes: [], points: [], rates: new Map() };
const view = { status: "", id: "", before: "" };
const nodes = { pods: new Map(), workers: new Map(), streams: new Map(), problems: new Map() };
let timer = null;
let asking = null;
let answeredAt = null;

const tokensChart = new Chart(byId("chart-tokens"), {
  series: [{ name: "now", className: "median", area: true, value: (point) => point.tokens / point.seconds }],
  format: (value) => `${rate(value)}/s`,
  least: 10,
  none: "No samples yet.",
  highest: true,
});
const delayChart = new Chart(byId("chart-delay"), {
  series: [
    { name: "p50", className: "median", value: (point) => point.p50_delay_seconds },
    { name: "p95", className: "most", value: (point) => point.p95_delay_seconds },
  ],
  format: seconds,
  least: 0.01,
  none: "No events were delivered live.",
});
const sheet = new StreamSheet(session, () => {
  if (!location.hash) return;
  const id = location.hash.slice(1);
  history.replaceState(null, "", location.pathname + location.search);
  nodes.streams.get(id)?.querySelector("a").focus();
});

// --- Asking

async function ask(path) {
  const signal = AbortSignal.any([asking.signal, AbortSignal.timeout(PATIENCE_MILLISECONDS)]);
  const response = await fetch(path, { headers: bearer(session.key), signal, cache: "no-store" });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

function streamsPath(wanted) {
  const query = new URLSearchParams(Object.entries(wanted).filter(([, value]) => value));
  return `console/streams?${query}`;
}

async function look() {
  clearTimeout(timer);
  asking?.abort();
  const mine = (asking = new AbortController());
  try {
    const since = session.points.at(-1)?.at ?? 0;
    const wanted = { ...view };
    const [overview, page] = await Promise.all([ask(`console/overview?since=${since}`), ask(streamsPath(wanted))]);
    const opened = sheet.id && !page.data.some((item) => item.id === sheet.id) ? await ask(streamsPath({ id: sheet.id })) : null;
    if (mine.signal.aborted) return;
    answeredAt = Date.now();
    byId("trouble").hidden = true;
    byId("numbers-now").classList.remove("stale");
    if (isNewer(page, wanted)) show(overview, page, opened);
  } catch (error) {
    if (mine.signal.aborted) return;
    fail(error);
    if (session.asks) return;
  }
  again();
}

// Pods cache what they answer for a second, and each request may reach another pod: an older answer is not shown.
function isNewer(page, wanted) {
  const query = streamsPath(wanted);
  const older = session.shown && session.query === query && Date.parse(page.at) < session.at;
  if (!older) Object.assign(session, { query, at: Date.parse(page.at) });
  return !older;
}

function again() {
  clearTimeout(timer);
  // A hidden page has no viewer. It asks at once when it becomes visible again.
  if (document.visibilityState === "visible") timer = setTimeout(look, EVERY_MILLISECONDS);
}

function fail(error) {
  if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
    askForKey(session.key ? error.message : "");
    return;
  }
  if (!session.shown) reveal();
  const trouble = byId("trouble");
  const since = answeredAt ? ` The numbers below are from ${clock(answeredAt)}.` : "";
  const what = error instanceof Refused ? error.message : "No pod answers.";
  trouble.hidden = false;
  setText(trouble, `${what} Trying again …${since}`);
  byId("numbers-now").classList.add("stale");
}

// --- The key

function askForKey(message) {
  session.asks = true;
  session.shown = false;
  sheet.close();
  byId("console").hidden = true;
  byId("forget").hidden = true;
  byId("enter").hidden = false;
  setText(byId("where"), "");
  setText(byId("key-error"), message);
  byId("key").focus();
}

function reveal() {
  session.asks = false;
  session.shown = true;
  byId("enter").hidden = true;
  byId("console").hidden = false;
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  session.key = byId("key").value.trim();
  sessionStorage.setItem(KEY, session.key);
  setText(byId("key-error"), "");
  look();
});

byId("forget").addEventListener("click", () => {
  asking?.abort();
  clearTimeout(timer);
  sessionStorage.removeItem(KEY);
  session.key = null;
  session.points = [];
  byId("key").value = "";
  askForKey("");
});

// --- Showing

function show(overview, page, opened) {
  if (!session.shown) reveal();
  session.scopes = overview.scopes;
  byId("forget").hidden = overview.anonymous;
  setText(byId("where"), `${overview.pod} · ${overview.version}`);
  setText(byId("tenant"), overview.tenant ? `of ${overview.tenant}` : "");
  showPoints(overview.points);
  showFigures(overview);
  showProblems(overview, page);
  showPods(overview.pods);
  showWorkers(overview);
  showStreams(page);
  showOpened(page, opened);
}

function showPoints(points) {
  session.points.push(...points);
  const oldest = (session.points.at(-1)?.at ?? 0) - HISTORY_SECONDS;
  while (session.points.length && session.points[0].at < oldest) session.points.shift();
  tokensChart.show(session.points);
  delayChart.show(session.points);
}

function showFigures({ live, queue, pods, tenant }) {
  const last = session.points.at(-1);
  const more = live.queued + live.waiting + live.running >= live.counted_up_to ? "+" : "";
  setText(byId("figure-running"), count(live.running) + more);
  setText(byId("figure-queued"), count(live.queued) + more);
  setText(byId("figure-viewers"), count(pods.reduce((sum, pod) => sum + (pod.subscribers ?? 0), 0)));
  setText(byId("figure-tokens"), last ? rate(last.tokens / last.seconds) : NONE);
  setText(byId("figure-delay"), seconds(last?.p95_delay_seconds));
  const waiting = tenant && queue.streams > live.queued ? `${count(queue.streams)} of all tenants, ` : "";
  const ofTenant = tenant ? `of ${tenant}` : "";
  setText(byId("note-queued"), queue.streams ? `${waiting}oldest ${span(queue.oldest_seconds)}` : ofTenant);
  setText(byId("note-running"), [live.waiting ? `and ${count(live.waiting)}${more} waiting` : "", ofTenant].filter(Boolean).join(", "));
  setText(byId("note-delay"), last && last.p50_delay_seconds !== null ? `p50 ${seconds(last.p50_delay_seconds)}` : "");
}

// What an operator should know first, in sentences.
function problemsOf({ pods, workers, queue, needs_worker: needsWorker }) {
  const found = [];
  const waiting = queue.streams ? ` ${plural(queue.streams, "stream")} ${queue.streams === 1 ? "waits" : "wait"}.` : "";
  const alive = workers.filter((worker) => worker.alive);
  if (!alive.length && needsWorker) found.push(`No worker is alive, so nothing is generated.${waiting}`);
  else if (queue.oldest_seconds > LONG_QUEUE_SECONDS) {
    const full = alive.every((worker) => worker.running >= worker.concurrency);
    const why = full ? "All workers are full." : "Workers have free slots: check which generators they offer.";
    found.push(`${plural(queue.streams, "stream")} queued, the oldest for ${span(queue.oldest_seconds)}. ${why}`);
  }
  for (const worker of workers.filter((item) => !item.alive)) {
    found.push(`Worker ${worker.name} has sent no heartbeat for ${span(worker.silent_seconds)}.`);
  }
  for (const pod of pods) {
    if (!pod.alive) found.push(`Pod ${pod.name} has sent no sign of life for ${span(pod.silent_seconds)}.`);
    else if (pod.state === "full" || pod.state === "not ready") found.push(`Pod ${pod.name} is ${pod.state}. It takes no new clients.`);
    else if (lacksHints(pod)) found.push(`Pod ${pod.name} receives no hints. It polls, so its events arrive late.`);
  }
  return found;
}

// Several failures among the newest streams, if the page shows the newest.
function failuresOf(page) {
  if (view.status || view.id || view.before) return session.failures ?? [];
  const now = Date.parse(page.at);
  const ended = page.data.filter((item) => item.finished_at && now - Date.parse(item.finished_at) < LATELY_SECONDS * 1000);
  const failed = ended.filter((item) => item.error);
  const codes = [...new Set(failed.map((item) => item.error.code))].join(", ");
  const many = failed.length >= 3 && failed.length >= ended.length / 5;
  session.failures = many ? [`${failed.length} of the last ${ended.length} streams failed: ${codes}.`] : [];
  return session.failures;
}

function showProblems(overview, page) {
  const found = [...problemsOf({ ...overview, pods: withoutReplaced(overview.pods) }), ...failuresOf(page)];
  setAttribute(byId("verdict"), "data-well", String(!found.length));
  setText(byId("verdict-head"), found.length ? "Needs attention" : "All is well");
  keyed(byId("verdict-list"), nodes.problems, found, (text) => text, (text) => el("li", {}, text), () => {});
}

const cells = (...classes) => classes.map((name) => el("td", name ? { class: name } : {}));

function makeProcess() {
  const row = el("tr", {}, el("th", { scope: "row" }), ...cells("", "number", "number"));
  row.children[1].append(el("span", { class: "state" }));
  return row;
}

function showProcess(row, item, { state, label }, number) {
  setAttribute(row, "class", item.alive ? "" : "gone");
  setText(row.children[0], item.name);
  const node = row.children[1].firstChild;
  setAttribute(node, "data-state", state);
  setText(node, label);
  setText(row.children[2], number);
  setText(row.children[3], item.alive ? span((Date.now() - Date.parse(item.started_at)) / 1000) : NONE);
}

function showPods(all) {
  const pods = withoutReplaced(all);
  setText(byId("pods-count"), String(pods.filter((pod) => pod.alive).length));
  keyed(byId("pods"), nodes.pods, pods, (pod) => pod.id, makeProcess, (row, pod) => {
    showProcess(row, pod, podState(pod), count(pod.subscribers));
  });
}

function showWorkers({ workers, needs_worker: needsWorker }) {
  setText(byId("workers-count"), String(workers.filter((worker) => worker.alive).length));
  byId("no-workers").hidden = workers.length > 0 || !needsWorker;
  keyed(byId("workers"), nodes.workers, workers, (worker) => worker.id, makeProcess, (row, worker) => {
    showProcess(row, worker, workerState(worker), `${count(worker.running)} of ${count(worker.concurrency)}`);
    setAttribute(row.children[0], "title", `Generators: ${worker.generators.join(", ")}`);
  });
}

const COLUMNS = ["Generator", "First token", "Tokens/s", "Events", "Viewers", "Took", "Created"];

function makeStream(item) {
  const state = el("td", { role: "cell" }, el("span", { class: "state" }));
  const link = el("a", { href: `#${item.id}`, title: item.id }, el("code", {}, shortId(item.id)));
  const name = el("th", { scope: "row", role: "rowheader" }, link, el("span", { class: "why" }));
  const rest = COLUMNS.map((label, index) => el("td", { role: "cell", "data-label": label, class: index ? "number" : "" }));
  const row = el("tr", { role: "row", "data-id": item.id }, state, name, ...rest);
  row.addEventListener("click", (event) => {
    if (!event.target.closest("a") && !String(getSelection())) location.hash = item.id;
  });
  return row;
}

function showStreams(page) {
  const now = Date.parse(page.at);
  noteRates(page.data, now);
  keyed(byId("stream-rows"), nodes.streams, page.data, (item) => item.id, makeStream, (row, item) => showStream(row, item, now));
  const empty = byId("no-streams");
  empty.hidden = page.data.length > 0;
  byId("stream-table").hidden = !page.data.length;
  const filtered = view.status || view.id || view.before;
  setText(empty, filtered ? "No stream matches." : "No streams yet. The first one appears here.");
  byId("older").hidden = !page.next;
  byId("older").dataset.before = page.next ?? "";
  byId("newest").hidden = !view.before;
  setText(byId("pager-note"), page.next && page.data.length < 50 ? "Only the newest 2,000 were searched." : "");
}

function showStream(row, item, now) {
  const timings = item.timings;
  const ended = !isLive(item);
  const age = (moment) => (now - Date.parse(moment)) / 1000;
  const [state, name, generator, first, perSecond, events, viewers, took, created] = row.children;
  setAttribute(row, "data-state", item.status);
  showState(state.firstChild, item.status);
  setText(name.lastChild, item.error ? item.error.code : "");
  setText(generator, item.generator);
  const waiting = !ended && item.events === 0 ? `waiting ${span(age(item.created_at))}` : NONE;
  setText(first, item.time_to_first_token_seconds === null ? waiting : seconds(item.time_to_first_token_seconds));
  setText(perSecond, rate(timings ? timings.tokens_per_second : rateOf(item)));
  setText(events, count(item.events));
  setText(viewers, count(item.viewers));
  const waits = item.waiting ? `waiting for ${span(age(item.waiting.since))}` : null;
  setText(took, waits ?? (timings ? seconds(timings.duration_seconds) : item.started_at && !ended ? `${span(age(item.started_at))} so far` : NONE));
  setText(created, `${span(age(item.created_at))} ago`);
  setAttribute(created, "title", new Date(item.created_at).toString());
}

// How fast live streams are, by the number of their newest event now and a few seconds ago.
function noteRates(items, now) {
  for (const item of items) {
    if (item.status !== "running" && item.status !== "open") {
      session.rates.delete(item.id);
      continue;
    }
    const seen = session.rates.get(item.id) ?? [];
    if (!seen.length || now > seen.at(-1).at) seen.push({ at: now, events: item.events });
    while (seen.length > 2 && now - seen[1].at > 4000) seen.shift();
    session.rates.set(item.id, seen);
  }
}

function rateOf(item) {
  const seen = session.rates.get(item.id);
  if (!seen || seen.length < 2) return null;
  const [first, last] = [seen[0], seen.at(-1)];
  return ((last.events - first.events) * 1000) / (last.at - first.at);
}

function showOpened(page, opened) {
  if (!sheet.id) return;
  const from = opened ?? page;
  if (opened) noteRates(opened.data, Date.parse(opened.at));
  const item = from.data.find((candidate) => candidate.id === sheet.id);
  if (item) sheet.update(item, Date.parse(from.at), rateOf(item));
  else if (opened) sheet.missing();
}

// --- What a person does

function choose(changes) {
  Object.assign(view, changes);
  for (const button of byId("filters").children) setAttribute(button, "aria-pressed", String(button.dataset.status === view.status));
  look();
}

byId("filters").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) choose({ status: button.dataset.status, before: "" });
});
byId("search").addEventListener("submit", (event) => event.preventDefault());
byId("wanted").addEventListener("input", (event) => {
  const id = event.target.value.trim().replace(/^resp_/, "");
  const readable = /^[0-9a-fA-F-]{0,36}$/.test(id);
  setAttribute(event.target, "aria-invalid", readable ? null : "true");
  if (readable) choose({ id, before: "" });
});
byId("older").addEventListener("click", (event) => choose({ before: event.target.dataset.before }));
byId("newest").addEventListener("click", () => choose({ before: "" }));

byId("stream-rows").addEventListener("keydown", (event) => {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const next = step && event.target.closest("tr")?.[step];
  if (next) {
    event.preventDefault();
    next.querySelector("a").focus();
  }
});
document.addEventListener("keydown", (event) => {
  const writes = event.target.closest("input, textarea, dialog");
  if (event.key === "/" && !writes && session.shown) {
    event.preventDefault();
    byId("wanted").focus();
  }
});

function openByAddress() {
  const id = location.hash.slice(1);
  if (/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(id) && session.shown) {
    sheet.open(id);
    look();
  } else if (!id) sheet.close();
}

window.addEventListener("hashchange", openByAddress);
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (document.visibilityState === "visible" && !session.asks) look();
});

await look();
openByAddress();
