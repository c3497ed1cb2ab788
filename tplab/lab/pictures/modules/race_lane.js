// One algorithm of the race: GPUs on a circle, the links it uses, parts that glide along them, towers that fill.

import { html, svg, put, timeText, bytesText, number } from "./common.js";
import { NAMES, heldAtFirst, closedForm } from "./race_plan.js";

// One per GPU; told apart in light and dark, and by their row in every tower besides.
export const RANK_COLOURS = ["#2F7DD1", "#F0A30A", "#1A9E77", "#D6456B", "#8A63C9", "#4BB8D8", "#A8703A", "#8C9A2B"];

const RADIUS = 118;
const HALF_OF_TILE = [0, 0, 42, 40, 38, 30, 27, 23, 21]; // by the number of GPUs: no link runs through a tile
const MARGIN = 4; // around a tower
const LABELS = 34; // height of a GPU's two lines
const WIDTHS = [330, 404]; // up to four GPUs; more have labels at their sides
const PLACES = ["", "1st", "2nd", "3rd", "4th"];

export const LANE_CSS = `
.race-lanes { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); gap: 12px; }
.race-room { container-type: inline-size; }
@container (max-width: 1180px) {
  /* two by two */
  .race-lanes.four { grid-template-columns: repeat(auto-fit, minmax(min(100%, max(270px, 36%)), 1fr)); }
}
.race-lane {
  border: 1px solid var(--line); border-radius: 8px; padding: 8px 10px; background: var(--paper); min-width: 0;
}
.race-lane.first { border-color: #007E5D; box-shadow: inset 0 0 0 1px #007E5D; }
.race-head { display: flex; gap: 8px; align-items: baseline; }
.race-head strong { font-size: 15px; }
.race-head .clock { margin-left: auto; font-size: 15px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.race-place {
  background: #5B6472; color: white; border-radius: 9px; padding: 0 8px; font-size: 12px; font-weight: 600;
}
.race-lane.first .race-place { background: #007E5D; }
.race-step, .race-foot { color: var(--quiet); font-size: 12px; min-height: 1.45em; }
.race-lane svg { max-width: 440px; margin: 4px auto; overflow: visible; }
.race-lane svg text { font-size: 14px; font-variant-numeric: tabular-nums; }
.race-lane svg .name { font-weight: 600; }
.race-lane svg .sent { fill: var(--quiet); }
.race-measured-time { font-size: 13px; font-variant-numeric: tabular-nums; }
.race-measured-time .badge { background: #007E5D; white-space: nowrap; }
.race-link { stroke: var(--line); stroke-width: 1.5; }
.race-link.busy { stroke: var(--quiet); stroke-width: 2; }
.race-tile { fill: var(--soft); stroke: var(--line); stroke-width: 1.5; }
.race-tile.done { stroke: #007E5D; stroke-width: 2.5; }
.race-whole { fill: var(--ink); }
.race-load { fill: var(--paper); stroke: var(--ink); stroke-width: 1; }
`;

// Where each GPU stands: on a circle, clockwise, the first to the right of the top.
function placesOf(n) {
  const half = HALF_OF_TILE[n];
  const points = Array.from({ length: n }, (_, rank) => {
    const angle = ((rank + 0.5) / n) * 2 * Math.PI - Math.PI / 2;
    return { x: RADIUS * Math.cos(angle), y: RADIUS * Math.sin(angle) };
  });
  const ys = points.map(({ y }) => y);
  const top = Math.min(...ys) - half - LABELS;
  return { points, half, top, height: Math.max(...ys) + half + LABELS - top };
}

// Where a GPU's two lines stand: outside of the circle, where no link runs.
function labelOf({ points, half }, rank) {
  const { x, y } = points[rank];
  if (points.length > 4 && Math.abs(x) > 0.85 * RADIUS)
    return { x: x + Math.sign(x) * (half + 6), y: y - 2, anchor: x > 0 ? "start" : "end" };
  const anchor = Math.abs(x) < 20 || points.length === 2 ? "middle" : x > 0 ? "start" : "end";
  const at = anchor === "middle" ? x : x - Math.sign(x) * half;
  return { x: at, y: y < -1 ? y - half - 20 : y + half + 16, anchor };
}

// The way from the edge of one tile to that of another, to the right of the middle: two that meet pass each other.
function wayOf({ points, half }, from, to, aside) {
  const [a, b] = [points[from], points[to]];
  const length = Math.hypot(b.x - a.x, b.y - a.y);
  const [ux, uy] = [(b.x - a.x) / length, (b.y - a.y) / length];
  const inside = (half + 3) / Math.max(Math.abs(ux), Math.abs(uy));
  const at = (distance) => ({ x: a.x + ux * distance - uy * aside, y: a.y + uy * distance + ux * aside });
  return { start: at(inside), end: at(length - inside), ux, uy };
}

const bitsOf = (mask, n) => Array.from({ length: n }, (_, rank) => rank).filter((rank) => mask & (1 << rank));

export function raceLane(algorithm) {
  const place = html("span", { class: "race-place" });
  const clock = html("span", { class: "clock" });
  const stepLine = html("div", { class: "race-step" });
  const foot = html("div", { class: "race-foot" });
  const measured = html("div", { class: "race-measured-time" });
  const picture = svg("svg", { role: "img" });
  const head = html("div", { class: "race-head" }, html("strong", {}, NAMES[algorithm]), place, clock);
  const parts = [head, stepLine, picture, foot, measured];
  const element = html("section", { class: "race-lane", "aria-label": NAMES[algorithm] }, ...parts);
  let plan, layout, tiles, links, loads, held, applied, before, arrivals, covered, finish, stepSaid;

  // `measured`: the last time on ranks of this very race, or none.
  function build(newPlan, settings, extras) {
    plan = newPlan;
    ({ covered, place: finish } = extras);
    measured.replaceChildren(
      ...(extras.measured
        ? [
            `measured at ${extras.measured.at}: ${timeText(extras.measured.us)} `,
            html("span", { class: "badge" }, extras.measured.badge),
          ]
        : []),
    );
    layout = placesOf(plan.n);
    arrivals = [...plan.messages].sort((a, b) => a.arrives - b.arrives);
    const width = WIDTHS[plan.n > 4 ? 1 : 0];
    put(picture, { viewBox: `${-width / 2} ${layout.top} ${width} ${layout.height}` });
    links = new Map();
    loads = new Map();
    const layers = [svg("g"), svg("g"), svg("g")];
    picture.replaceChildren(...layers);
    for (const { from, to } of plan.messages) drawLink(layers[0], from, to);
    tiles = layout.points.map((point, rank) => drawTile(layers[1], point, rank));
    layers[2].setAttribute("class", "race-loads");
    picture.loads = layers[2];
    before = -1;
    stepSaid = null;
    const { steps, perByte } = closedForm(algorithm, settings);
    const inARow = `${number(perByte)} S = ${bytesText(perByte * plan.nbytes)}`;
    const counted = covered
      ? ". Bytes are counted here once you have predicted them."
      : `, ${inARow} one after the other`;
    foot.textContent = `${steps} step${steps > 1 ? "s" : ""}${counted}`;
  }

  function drawLink(layer, from, to) {
    const key = from < to ? `${from}-${to}` : `${to}-${from}`;
    if (links.has(key)) return;
    const bothWays = plan.messages.some((message) => message.from === to && message.to === from);
    const { start, end, ux, uy } = wayOf(layout, from, to, 0);
    const line = svg("line", { class: "race-link", x1: start.x, y1: start.y, x2: end.x, y2: end.y });
    layer.append(line);
    links.set(key, line);
    if (bothWays) return;
    const back = { x: end.x - 9 * ux, y: end.y - 9 * uy };
    const points = [[end.x, end.y], [back.x - 4.5 * uy, back.y + 4.5 * ux], [back.x + 4.5 * uy, back.y - 4.5 * ux]];
    layer.append(svg("polygon", { points: points.join(" "), fill: "var(--quiet)" }));
  }

  function drawTile(layer, { x, y }, rank) {
    const { half } = layout;
    const box = svg("rect", { class: "race-tile", x: x - half, y: y - half, width: 2 * half, height: 2 * half, rx: 5 });
    const rows = RANK_COLOURS.slice(0, plan.n).map((fill) => svg("path", { fill }));
    const whole = svg("path", { class: "race-whole" });
    const label = labelOf(layout, rank);
    const at = { x: label.x, "text-anchor": label.anchor };
    const sent = svg("text", { class: "sent", ...at, y: label.y + 14 });
    layer.append(box, ...rows, whole, svg("text", { class: "name", ...at, y: label.y }, `GPU ${rank}`), sent);
    return { x, y, box, rows, whole, sent };
  }

  // A column per chunk, a row per summand: filled where that summand is in the chunk.
  function drawTower(rank) {
    const { x, y, box, rows, whole } = tiles[rank];
    const { n } = plan;
    const room = 2 * (layout.half - MARGIN);
    const cell = room / n;
    const left = x - room / 2;
    const bottom = y + room / 2 - 1;
    const full = 2 ** n - 1;
    rows.forEach((row, summand) => {
      const cells = held[rank].map((mask, chunk) =>
        mask & (1 << summand)
          ? `M${left + chunk * cell + 0.5} ${bottom - summand * cell - 0.5}h${cell - 1}v${1 - cell}h${1 - cell}z`
          : "",
      );
      put(row, { d: cells.join("") });
    });
    const bars = held[rank].map((mask, chunk) =>
      mask === full ? `M${left + chunk * cell + 0.5} ${bottom + 0.5}h${cell - 1}v2.5h${1 - cell}z` : "",
    );
    put(whole, { d: bars.join("") });
    put(box, { class: held[rank].every((mask) => mask === full) ? "race-tile done" : "race-tile" });
  }

  function drawLoad(message) {
    const summands = bitsOf(message.load[0], plan.n);
    const cell = (1.24 * (layout.half - MARGIN)) / plan.n;
    const wide = Math.max(message.chunks.length * cell, 9);
    const high = Math.max(cell, 7 / summands.length);
    const group = svg("g", {});
    const tall = high * summands.length;
    const edge = { x: -wide / 2 - 1, y: -tall / 2 - 1, width: wide + 2, height: tall + 2, rx: 2 };
    group.append(svg("rect", { class: "race-load", ...edge }));
    summands.forEach((summand, row) =>
      group.append(
        svg("rect", {
          ...{ x: -wide / 2, width: wide, height: high, y: tall / 2 - (row + 1) * high, fill: RANK_COLOURS[summand] },
        }),
      ),
    );
    return group;
  }

  // Everything as it is at time t; a frame changes only what moved since the last one.
  function draw(t) {
    if (t < before || before < 0) {
      held = heldAtFirst(plan.n);
      applied = 0;
      tiles.forEach((_, rank) => drawTower(rank));
    }
    const changed = new Set();
    for (; applied < arrivals.length && arrivals[applied].arrives <= t * (1 + 1e-12); applied += 1) {
      const { to, chunks, load, adds } = arrivals[applied];
      chunks.forEach((chunk, i) => (held[to][chunk] = adds ? held[to][chunk] | load[i] : load[i]));
      changed.add(to);
    }
    changed.forEach(drawTower);
    drawMoving(t);
    drawWords(t);
    before = t;
  }

  function drawMoving(t) {
    const sent = new Array(plan.n).fill(0);
    const busy = new Set();
    plan.messages.forEach((message, index) => {
      const { from, to, leaves, arrives } = message;
      if (t > leaves) {
        const part = Math.min(1, (t - leaves) / (message.sent - leaves));
        sent[from] += (part * message.chunks.length) / plan.n;
      }
      const moving = t >= leaves && t < arrives && t > 0;
      let load = loads.get(index);
      if (!moving) {
        if (load) load.remove();
        loads.delete(index);
        return;
      }
      busy.add(from < to ? `${from}-${to}` : `${to}-${from}`);
      if (!load) {
        load = drawLoad(message);
        loads.set(index, load);
        picture.loads.append(load);
      }
      const aside = plan.algorithm === "ring" ? 0 : 9;
      const { start, end } = wayOf(layout, from, to, aside);
      const part = (t - leaves) / (arrives - leaves);
      const [x, y] = [start.x + part * (end.x - start.x), start.y + part * (end.y - start.y)];
      put(load, { transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` });
    });
    links.forEach((line, key) => put(line, { class: busy.has(key) ? "race-link busy" : "race-link" }));
    tiles.forEach((tile, rank) => {
      const text = covered ? "" : bytesText(sent[rank] * plan.nbytes);
      if (tile.sent.textContent !== text) tile.sent.textContent = text;
    });
  }

  function drawWords(t) {
    const done = t >= plan.end * (1 - 1e-12);
    const time = timeText(Math.min(t, plan.end));
    if (clock.textContent !== time) clock.textContent = time;
    const step = plan.steps.find(({ end }) => t < end * (1 - 1e-12)) ?? plan.steps.at(-1);
    const words = done
      ? "every GPU has the sum"
      : `step ${step.index + 1} of ${plan.steps.length}: ${step.name}`;
    if (words === stepSaid) return;
    stepSaid = words;
    stepLine.textContent = words;
    put(picture, { "aria-label": `${NAMES[algorithm]} on ${plan.n} GPUs in a circle. ${words}.` });
    place.textContent = done ? PLACES[finish] : "";
    place.style.visibility = done ? "visible" : "hidden";
    element.classList.toggle("first", done && finish === 1);
  }

  return { element, build, draw, words: () => stepSaid };
}
