// What all pages use: finding and making nodes, and writing numbers with their units. Text never becomes markup.

export const byId = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// Touches the page only where something has changed, so that a selection and the focus stay where they are.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// Makes the children of a node those of the items, in their order, and keeps each item's node.
export function keyed(parent, nodes, items, key, make, update) {
  const kept = new Set();
  let place = parent.firstElementChild;
  for (const item of items) {
    const id = key(item);
    kept.add(id);
    let node = nodes.get(id);
    if (!node) nodes.set(id, (node = make(item)));
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const [id, node] of nodes) {
    if (kept.has(id)) continue;
    node.remove();
    nodes.delete(id);
  }
}

export const NONE = "–";

export const count = (number) => (number === null || number === undefined ? NONE : number.toLocaleString("en"));

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 10) return `${value.toFixed(2)} s`;
  if (value < 100) return `${value.toFixed(1)} s`;
  return span(value);
}

// How long ago, or how long since: no finer than a person needs it.
export function span(value) {
  const whole = Math.max(0, Math.round(value));
  if (whole < 100) return `${whole} s`;
  if (whole < 5400) return `${Math.round(whole / 60)} min`;
  if (whole < 129600) return `${Math.round(whole / 3600)} h`;
  return `${Math.round(whole / 86400)} d`;
}

export function rate(value) {
  if (value === null || value === undefined) return NONE;
  return value > 0 && value < 9.95 ? value.toFixed(1) : count(Math.round(value));
}

export const shortId = (id) => `${id.slice(0, 13)}…${id.slice(-4)}`;

export const clock = (moment) => new Date(moment).toLocaleTimeString("en-GB");

export const STATES = { queued: "Queued", running: "Running", waiting: "Waiting", open: "Open", completed: "Completed", failed: "Failed", cancelled: "Cancelled" };

export const isLive = (item) => ["queued", "running", "waiting", "open"].includes(item.status);

export const state = (status) => {
  const node = el("span", { class: "state" });
  showState(node, status);
  return node;
};

export function showState(node, status) {
  setAttribute(node, "data-state", status);
  setText(node, STATES[status] ?? status);
}
