// Parses server-sent events (WHATWG HTML, 9.2.6).

/** One dispatched event. `id` is the last id of the stream so far, which an event without one keeps. */
export interface ServerSentEvent {
  id: string;
  type: string;
  data: string;
}

/** Takes chunks of text in any division, and returns the events that they complete. An incomplete event is never returned. */
export class EventStreamParser {
  /** The reconnection time that the stream set last. */
  retryMilliseconds: number | undefined;
  #rest = "";
  #atStart = true;
  #afterCr = false; // the last chunk ended with a carriage return: a line feed that follows belongs to it
  #data: string[] = [];
  #type = "";
  #id = "";

  push(chunk: string): ServerSentEvent[] {
    const found: ServerSentEvent[] = [];
    let text = this.#rest + chunk;
    if (this.#atStart && text) {
      if (text.startsWith("\uFEFF")) text = text.slice(1);
      this.#atStart = false;
    }
    let start = 0;
    if (this.#afterCr && text) {
      if (text[0] === "\n") start = 1;
      this.#afterCr = false;
    }
    for (let end = lineEnd(text, start); end !== -1; end = lineEnd(text, start)) {
      this.#line(text.slice(start, end), found);
      const isCr = text[end] === "\r";
      start = isCr && text[end + 1] === "\n" ? end + 2 : end + 1;
      this.#afterCr = isCr && start === text.length && start === end + 1;
    }
    this.#rest = text.slice(start);
    return found;
  }

  #line(line: string, found: ServerSentEvent[]): void {
    if (line === "") return this.#dispatch(found);
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment
    const name = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.retryMilliseconds = Number(value);
  }

  #dispatch(found: ServerSentEvent[]): void {
    const [data, type] = [this.#data, this.#type || "message"];
    this.#data = [];
    this.#type = "";
    if (data.length) found.push({ id: this.#id, type, data: data.join("\n") });
  }
}

function lineEnd(text: string, start: number): number {
  const lf = text.indexOf("\n", start);
  const cr = text.indexOf("\r", start);
  if (lf === -1 || cr === -1) return Math.max(lf, cr);
  return Math.min(lf, cr);
}
