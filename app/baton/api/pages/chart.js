// A line chart of the last minutes, in SVG, with axes, units, and a sentence that says the same.

import { clock, setText } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 168;
const MARGIN = { top: 10, right: 10, bottom: 22, left: 58 };
const SPAN_SECONDS = 600;

function svg(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  if (text !== undefined) node.textContent = text;
  return node;
}

// A round number above the highest value, and the steps to it.
function scale(highest) {
  const rough = Math.max(highest, 1e-3) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  const steps = Math.max(1, Math.ceil(highest / step - 1e-9));
  return { top: step * steps, ticks: Array.from({ length: steps + 1 }, (_, index) => index * step) };
}

export class Chart {
  // `series`: [{name, className, area, value(point)}]; `format` writes a value with its unit; `least`: what the axis shows
  // at least; `none`: what to say where no point has a value; `highest`: whether its sentence has the highest value, too.
  constructor(figure, { series, format, least, none, highest = false }) {
    this.figure = figure;
    this.series = series;
    this.format = format;
    this.least = least;
    this.none = none;
    this.highest = highest;
    this.points = [];
    this.plot = figure.querySelector(".plot");
    this.reading = figure.querySelector(".reading");
    this.pointed = null;
    new ResizeObserver(() => this.draw()).observe(this.plot);
    this.plot.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.plot.addEventListener("pointerleave", () => this.#point(null));
  }

  show(points) {
    this.points = points;
    this.draw();
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width) return;
    const end = this.points.length ? this.points.at(-1).at : Date.now() / 1000;
    const values = this.points.flatMap((point) => this.series.map((line) => line.value(point))).filter((value) => value !== null);
    const { top, ticks } = scale(Math.max(this.least, ...values));
    this.x = (at) => MARGIN.left + (1 - (end - at) / SPAN_SECONDS) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => HEIGHT - MARGIN.bottom - (value / top) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img" });
    picture.setAttribute("aria-label", this.#sentence());
    for (const tick of ticks) {
      picture.append(
        svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
        svg("text", { class: "tick", x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" }, this.format(tick)),
      );
    }
    const minutes = width < 420 ? [10, 5, 0] : [10, 8, 6, 4, 2, 0];
    for (const ago of minutes) {
      const anchor = ago === 0 ? "end" : "middle";
      const text = ago === 0 ? "now" : `−${ago} min`;
      picture.append(svg("text", { class: "tick", x: this.x(end - ago * 60), y: HEIGHT - 5, "text-anchor": anchor }, text));
    }
    for (const line of this.series) this.#line(picture, line, y);
    if (this.pointed) {
      const x = this.x(this.pointed.at);
      picture.append(svg("line", { class: "pointed", x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
    }
    this.plot.replaceChildren(picture);
    setText(this.reading, this.pointed ? this.#readingOf(this.pointed) : this.#sentence());
  }

  #line(picture, line, y) {
    for (const run of this.#runs(line)) {
      const path = run.map((point) => `${this.x(point.at).toFixed(1)},${y(line.value(point)).toFixed(1)}`).join("L");
      if (line.area && run.length > 1) {
        const [from, to] = [this.x(run[0].at), this.x(run.at(-1).at)];
        picture.append(svg("path", { class: "area", d: `M${from},${y(0)}L${path}L${to},${y(0)}Z` }));
      }
      if (run.length > 1) picture.append(svg("path", { class: `line ${line.className}`, d: `M${path}` }));
      else picture.append(svg("circle", { class: `dot ${line.className}`, cx: this.x(run[0].at), cy: y(line.value(run[0])), r: 1.5 }));
    }
  }

  // Points that follow each other without a gap.
  #runs(line) {
    const runs = [];
    let before = null;
    for (const point of this.points) {
      if (line.value(point) === null) continue;
      if (before && point.at - before.at < 3 * point.seconds + 1) runs.at(-1).push(point);
      else runs.push([point]);
      before = point;
    }
    return runs;
  }

  #point(x) {
    let nearest = null;
    if (x !== null && this.x) {
      for (const point of this.points) {
        if (!nearest || Math.abs(this.x(point.at) - x) < Math.abs(this.x(nearest.at) - x)) nearest = point;
      }
    }
    this.pointed = nearest;
    this.draw();
  }

  #readingOf(point) {
    const values = this.series.map((line) => `${line.name} ${line.value(point) === null ? "none" : this.format(line.value(point))}`);
    return `${clock(point.at * 1000)}: ${values.join(", ")}`;
  }

  #sentence() {
    const values = this.series.flatMap((line) => {
      const known = this.points.map(line.value).filter((value) => value !== null);
      if (!known.length) return [];
      const most = this.highest ? `, highest ${this.format(Math.max(...known))}` : "";
      return [`${line.name} ${this.format(known.at(-1))}${most}`];
    });
    return values.join(", ") || this.none;
  }
}
