// Servers for the tests: one that serves a scripted event stream, and one that keeps appended streams, both with faults.
import { createServer } from "node:http";
import { once } from "node:events";

/** Run `work` with the address of a server. */
export async function serving(handler, work) {
  const server = createServer((request, response) => void handler(request, response));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    return await work(`http://127.0.0.1:${server.address().port}`, server);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

export const block = (id, event) => `id: ${id}\ndata: ${JSON.stringify(event)}\n\n`;

export const sse = { "content-type": "text/event-stream; charset=utf-8", "x-baton-pod": "pod-a" };

/** Send bytes, and then break the connection instead of ending the response. */
export function cut(response, bytes) {
  response.write(bytes, () => response.socket?.destroy());
  if (!bytes.length) response.flushHeaders(), response.socket?.destroy();
}

export async function textOf(request) {
  let text = "";
  for await (const chunk of request) text += chunk;
  return text;
}

/**
 * A server of appended streams, with the protocol's fence. `fault(n)` says what happens to the append number n: nothing,
 * "before" (the connection breaks and nothing was done), "after" (it breaks, and everything was done), or a status.
 */
export class AppendServer {
  constructor({ fault = () => null, refuse = () => null } = {}) {
    this.fault = fault;
    this.refuse = refuse;
    this.requests = [];
    this.creates = [];
    this.stream = { log: [], closed: false, end: null, producers: new Map() };
    this.held = new Set();
    this.appended = new Set();
    this.handle = this.handle.bind(this);
  }

  /** The events that were appended: what viewers see. */
  get log() {
    return this.stream.log;
  }

  /** Wait until this many events are in the log. */
  async reaches(count) {
    while (this.log.length < count) await new Promise((resolve) => this.appended.add(resolve));
  }

  /** End the stream as another client would. */
  end(end) {
    this.stream.closed = true;
    this.stream.end = end;
    for (const response of this.held) json(response, 200, end);
    this.held.clear();
  }

  async handle(request, response) {
    const { pathname } = new URL(request.url, "http://x");
    const body = await textOf(request);
    this.requests.push({ method: request.method, url: request.url, headers: request.headers });
    if (request.method === "POST" && pathname === "/v1/streams") return this.#create(request, response, body);
    if (request.method === "GET" && pathname === `/v1/streams/${ID}/end`) return this.#end(request, response);
    if (request.method === "POST" && pathname === `/v1/stream/${ID}`) return this.#appendWithFaults(request, response, body);
    json(response, 404, { code: "not_found" });
  }

  #create(request, response, body) {
    const n = this.creates.push({ key: request.headers["idempotency-key"], body: JSON.parse(body), headers: request.headers });
    const fault = this.createFault?.(n - 1);
    if (fault === "after") return request.socket.destroy();
    if (fault) return json(response, fault, { code: "unavailable" }, { "retry-after": "0" });
    const producer = { url: `/v1/stream/${ID}`, token: "append-token" };
    json(response, 201, { id: ID, events_url: `/v1/streams/${ID}/events`, token: "view-token", producer });
  }

  #end(request, response) {
    if (this.stream.end) return json(response, 200, this.stream.end);
    if (new URL(request.url, "http://x").searchParams.get("wait") === "0") return response.writeHead(204).end();
    this.held.add(response);
    response.on("close", () => this.held.delete(response));
  }

  #appendWithFaults(request, response, body) {
    const fault = this.fault((this.appends = (this.appends ?? 0) + 1) - 1);
    if (fault === "before") return request.socket.destroy();
    if (typeof fault === "number") return json(response, fault, { code: "unavailable" }, { "retry-after": "0" });
    const { status, headers = {}, problem } = this.#append(request.headers, JSON.parse(body));
    this.appended.forEach((resolve) => resolve());
    this.appended.clear();
    if (fault === "after") return request.socket.destroy();
    problem ? json(response, status, problem, headers) : response.writeHead(status, headers).end();
  }

  #append(headers, messages) {
    const [id, epoch, seq] = [headers["producer-id"], Number(headers["producer-epoch"]), Number(headers["producer-seq"])];
    const known = this.stream.producers.get(id) ?? { epoch: -1, seq: -1 };
    if (epoch < known.epoch) return { status: 403, headers: { "producer-epoch": String(known.epoch) }, problem: { code: "producer_fenced" } };
    if (epoch === known.epoch && seq <= known.seq) return { status: 204, headers: numbered(known) };
    if (this.stream.closed) {
      const code = this.stream.end?.error?.code ?? this.stream.end?.finish_reason ?? "closed";
      return { status: 409, headers: { "stream-closed": "true" }, problem: { code, detail: "It has ended." } };
    }
    const expected = epoch === known.epoch ? known.seq + 1 : 0;
    if (seq !== expected) {
      const found = { "producer-expected-seq": String(expected), "producer-received-seq": String(seq) };
      return { status: 409, headers: found, problem: { code: "producer_gap" } };
    }
    const refused = this.refuse(messages);
    if (refused) return refused;
    this.stream.producers.set(id, { epoch, seq });
    this.stream.log.push(...messages);
    this.stream.closed = headers["stream-closed"] === "true";
    return { status: 200, headers: numbered({ epoch, seq }) };
  }
}

const numbered = ({ epoch, seq }) => ({ "producer-epoch": String(epoch), "producer-seq": String(seq) });

export const ID = "019a5e2c-0000-7000-8000-00000000000a";

function json(response, status, content, headers = {}) {
  response.writeHead(status, { "content-type": "application/problem+json", ...headers }).end(JSON.stringify(content));
}
