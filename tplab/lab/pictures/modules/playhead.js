// A play head over a Gantt chart: micro-batches as numbered tokens that go through the ranks, memory that fills and
// empties, messages that fly. Of any trace, simulated or measured; everything is computed once, a frame only looks up.

import { COLOURS, frame, html, number, player, put, statusLine, svg } from "./common.js";
import { WORDS, axis, fillOf, followWidth, inkOn, labelOf, onPage } from "./lanes.js";
import { buildTrip, MOST_SLOTS } from "./trip.js";

const MOST_LABELLED = 64; // actions of a lane
const MOST_TOKENS = 256;
const GUTTER = 56;

const STYLE = `
.tplab-picture .track { fill: var(--soft); }
.tplab-picture .rank-box { fill: var(--paper); stroke: var(--line); stroke-width: 1.5; transition: stroke 0.1s; }
.tplab-picture .cell { transition: opacity 0.15s; }
.tplab-picture .head { stroke: ${COLOURS.collective}; stroke-width: 2; }
.tplab-picture .axis line { stroke: var(--line); stroke-width: 0.5; }
.tplab-picture .axis text, .tplab-picture .small { font-size: 11px; fill: var(--quiet); }
.tplab-picture .running { fill: none; stroke: var(--ink); stroke-width: 2; }
.tplab-picture .message { fill: none; stroke: ${COLOURS.pointToPoint}; }
.tplab-picture .token text { font-size: 11px; font-weight: 600; }
.tplab-picture .chart { cursor: ew-resize; }
.tplab-picture svg { touch-action: pan-y; }
.tplab-picture .key { display: inline-flex; gap: 5px; align-items: center; font-size: 12px; }
.tplab-picture .key i { width: 12px; height: 12px; border-radius: 2px; display: inline-block; }
.tplab-picture .title { font-weight: 600; }
@media (prefers-reduced-motion: reduce) { .tplab-picture .cell, .tplab-picture .rank-box { transition: none; } }
`;

export function render({ model, el }) {
  let dispose = () => {};
  const draw = () => {
    dispose();
    dispose = drawTrace(model, el);
  };
  model.on("change:trace", draw);
  draw();
  return () => {
    model.off("change:trace", draw);
    dispose();
  };
}

function drawTrace(model, el) {
  const trace = model.get("trace");
  const trip = buildTrip(trace);
  const shown = (time) => `${number(time * trace.factor, 4)} ${trace.unit}`;
  const root = frame(el, `${trace.title}: play head`, STYLE);
  const scene = html("div", {});
  const status = statusLine();
  let view = null;
  const play = player({
    duration: trip.end,
    seconds: Math.min(24, Math.max(6, trip.stops.length / 5)),
    stops: trip.stops,
    format: shown,
    label: "time",
    onTime: (time, playing) => {
      view?.show(time);
      if (!playing) status.say(`At ${shown(time)}: ${trip.told(time)}`);
    },
  });
  const head = html("div", { class: "row" }, html("span", { class: "title" }, trace.title), html("span", { class: "badge" }, trace.badge));
  root.append(head, scene, play.element, keys(trace), status.element);
  const unfollow = followWidth(root, (width) => {
    view = stage(trace, trip, width);
    scene.replaceChildren(view.svg);
    const chart = view.svg.querySelector(".chart");
    const seek = (event) => {
      play.pause();
      play.seek(view.timeAt(event));
    };
    chart.addEventListener("pointerdown", (event) => {
      chart.setPointerCapture(event.pointerId);
      seek(event);
    });
    chart.addEventListener("pointermove", (event) => event.buttons && seek(event));
    view.show(play.time());
  });
  return () => {
    unfollow();
    play.destroy();
  };
}

const decodes = (trace, micro) => trace.needs[micro]?.[0] === "decode";

function keys(trace) {
  const ops = Object.keys(WORDS).filter((op) => trace.op.includes(op));
  const key = (colour, text) => html("span", { class: "key" }, html("i", { style: `background:${onPage(colour)}` }), text);
  const decode = trace.needs.some(([phase]) => phase === "decode");
  const swatches = ops.map((op) => key(fillOf(op, 0, 1, decode), op === "F" && decode ? "decode" : WORDS[op]));
  if (trace.sent.length) swatches.push(key(COLOURS.pointToPoint, "message"));
  return html("div", { class: "row", "aria-hidden": "true" }, ...swatches);
}

/** The drawing at a width: `svg`, `show(time)`, `timeAt(pointer event)`. */
function stage(trace, trip, width) {
  const conveyor = buildConveyor(trace, trip, width);
  const chart = buildChart(trace, trip, width, conveyor.height + 14);
  const height = conveyor.height + 14 + chart.height;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": trip.summary(trace) });
  picture.append(conveyor.group, chart.group);
  return {
    svg: picture,
    show(time) {
      conveyor.show(time);
      chart.show(time);
    },
    timeAt(event) {
      const box = picture.getBoundingClientRect();
      return chart.timeOf(((event.clientX - box.left) * width) / box.width);
    },
  };
}

/** The ranks in a row: what each does, what it holds, and the tokens on their way between them. */
function buildConveyor(trace, trip, width) {
  const { p } = trace;
  const pitch = (width - GUTTER) / p;
  const box = { width: Math.max(6, pitch * 0.62), top: 18, height: 116 };
  const left = (rank) => GUTTER + rank * pitch + (pitch - box.width) / 2;
  const radius = Math.max(3, Math.min(12, box.width / 3, (pitch - box.width) * 0.55));
  const desk = { y: box.top + 22 };
  const named = pitch >= 44;
  const group = svg("g", {});
  group.append(svg("rect", { class: "track", x: 0, width, y: desk.y - radius - 4, height: 2 * radius + 8, rx: radius }));
  const waiting = svg("text", { class: "small", x: 2, y: box.top + 66 });
  const finished = svg("text", { class: "small", x: 2, y: box.top + 82 });
  group.append(waiting, finished);

  const most = Math.max(1, ...trip.slots);
  const vessel = { top: box.top + 56, height: box.height - 62 };
  const rowHeight = Math.min(12, vessel.height / most);
  const boxes = [];
  for (let rank = 0; rank < p; rank++) {
    const x = left(rank);
    const rect = svg("rect", { class: "rank-box", x, y: box.top, width: box.width, height: box.height, rx: 5 });
    const title = svg("text", { class: "small", x: x + box.width / 2, y: box.top - 5, "text-anchor": "middle" }, named ? `${trace.lane} ${rank}` : p <= 16 || rank % 4 === 0 ? rank : "");
    const doing = svg("text", { class: "small", x: x + box.width / 2, y: desk.y + 26, "text-anchor": "middle" });
    group.append(rect, title, doing);
    const cells = [];
    const bar = trip.slots[rank] > MOST_SLOTS ? svg("rect", { x: x + 4, width: Math.max(2, box.width - 8), fill: COLOURS.decode }) : null;
    if (bar) group.append(bar);
    for (let slot = 0; slot < trip.slots[rank] && !bar; slot++) {
      const y = vessel.top + vessel.height - (slot + 1) * rowHeight;
      const cell = svg("g", { class: "cell", opacity: 0 });
      const block = svg("rect", { x: x + 4, y, width: Math.max(2, box.width - 8), height: Math.max(1, rowHeight - 1), rx: 1.5, fill: COLOURS.decode });
      const text = svg("text", { x: x + box.width / 2, y: y + rowHeight - 3, "text-anchor": "middle", style: "font-size:9.5px;fill:#1F2430" });
      cell.append(block, text);
      group.append(cell);
      cells.push({ cell, text: rowHeight >= 10 && box.width >= 20 ? text : null });
    }
    if (trace.cap !== null) {
      const y = vessel.top + vessel.height - Math.min(trace.cap * trace.v, most + 0.4) * rowHeight;
      if (y >= vessel.top - 2) group.append(svg("line", { x1: x + 1, x2: x + box.width - 1, y1: y, y2: y, stroke: COLOURS.collective, "stroke-dasharray": "3 2" }));
    }
    boxes.push({ rect, doing, cells, bar, at: -2, doingAt: -2 });
  }
  const tokens = Array.from({ length: Math.min(trace.m, MOST_TOKENS) }, () => {
    const circle = svg("circle", { r: radius, stroke: "var(--paper)" });
    const text = svg("text", { "text-anchor": "middle", y: 4 });
    const token = svg("g", { class: "token", visibility: "hidden" }, circle, radius >= 7 ? text : "");
    group.append(token);
    return { token, circle, text, fill: "", visible: false, label: "" };
  });
  const place = (rank, side) => left(rank) + (side === 0 ? box.width / 2 : side < 0 ? -radius - 1 : box.width + radius + 1);
  const letter = box.width < 64;

  function showRanks(time) {
    boxes.forEach((each, rank) => {
      const running = trip.running(rank, time);
      if (running !== each.doingAt) {
        each.doingAt = running;
        const op = running < 0 ? "" : trace.op[running];
        each.rect.style.stroke = op ? onPage(fillOf(op)) : "";
        each.doing.textContent = !op ? (box.width < 26 ? "" : "idle") : letter ? op : op === "F" ? "forward" : op === "W" ? "weights" : "backward";
      }
      const at = trip.memoryAt(rank, time);
      if (at === each.at) return;
      each.at = at;
      const height = trip.count(rank, at) * rowHeight;
      if (each.bar) put(each.bar, { y: vessel.top + vessel.height - height, height });
      const held = trip.held(rank, at);
      each.cells.forEach(({ cell, text }, slot) => {
        const micro = held[slot] ?? -1;
        put(cell, { opacity: micro < 0 ? 0 : 1 });
        if (text && micro >= 0) text.textContent = micro;
      });
    });
  }

  function showTokens(time) {
    const queues = new Map();
    let next = 0;
    let before = 0;
    let after = 0;
    for (let micro = 0; micro < trace.m; micro++) {
      const spot = trip.tokenAt(micro, time);
      if (spot.phase < 0) before += 1;
      else if (spot.phase > 0) after += 1;
      if (spot.phase !== 0 || next >= tokens.length) continue;
      let x = place(spot.rank, spot.side);
      let y = desk.y;
      if (spot.part !== undefined) {
        const to = place(spot.toRank, spot.toSide);
        const from = spot.enters ? 4 : x;
        x = from + (to - from) * spot.part;
        y -= Math.sin(Math.PI * spot.part) * Math.min(14, Math.abs(to - from) * 0.12);
      } else if (spot.side !== 0) {
        const key = 4 * spot.rank + spot.side;
        const place = queues.get(key) ?? 0;
        queues.set(key, place + 1);
        y += Math.min(place, 7) * Math.min(radius * 1.3, 13);
      }
      const each = tokens[next++];
      each.token.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
      const fill = fillOf(spot.op, 0, 1, decodes(trace, micro));
      if (fill !== each.fill) {
        each.circle.setAttribute("fill", (each.fill = fill));
        each.text.style.fill = inkOn(fill);
      }
      if (each.label !== micro) each.text.textContent = each.label = micro;
      if (!each.visible) each.token.setAttribute("visibility", "visible");
      each.visible = true;
    }
    for (const each of tokens.slice(next)) {
      if (each.visible) each.token.setAttribute("visibility", "hidden");
      each.visible = false;
    }
    const [toCome, done] = [`to come ${before}`, `done ${after}`];
    if (waiting.textContent !== toCome) waiting.textContent = toCome;
    if (finished.textContent !== done) finished.textContent = done;
  }
  return { group, height: box.top + box.height, show: (time) => (showRanks(time), showTokens(time)) };
}

/** The Gantt chart below, with the head over it. */
function buildChart(trace, trip, width, top) {
  const lane = Math.max(8, Math.min(26, 300 / trace.p));
  const px = width - GUTTER - 8;
  const x = (time) => GUTTER + (trip.end ? (time / trip.end) * px : 0);
  const y = (rank) => top + rank * lane;
  const bottom = y(trace.p);
  const group = svg("g", {});
  for (let rank = 0; rank < trace.p; rank++)
    group.append(svg("rect", { class: "track", x: GUTTER, y: y(rank) + 1.5, width: px, height: lane - 3 }));
  group.append(axis(trip.end * trace.factor, px, (value) => x(value / trace.factor), top, bottom, trace.unit));
  for (let rank = 0; rank < trace.p; rank += Math.max(1, Math.ceil(trace.p / 16)))
    group.append(svg("text", { class: "small", x: GUTTER - 6, y: y(rank) + lane / 2 + 4, "text-anchor": "end" }, `${trace.lane} ${rank}`));
  const paths = new Map();
  const labels = svg("g", { "aria-hidden": "true", style: "pointer-events:none" });
  trip.computed.forEach((at) => {
    const op = trace.op[at];
    const fill = fillOf(op, Math.floor(trace.stage[at] / trace.p), trace.v, decodes(trace, trace.micro[at]));
    const [from, to] = [x(trace.start[at]), x(trace.end[at])];
    const [y0, y1] = [y(trace.rank[at]) + 1.5, y(trace.rank[at] + 1) - 1.5];
    paths.set(fill, `${paths.get(fill) ?? ""}M${from.toFixed(1)} ${y0.toFixed(1)}H${Math.max(from + 0.6, to - 0.6).toFixed(1)}V${y1.toFixed(1)}H${from.toFixed(1)}Z`);
    if (trip.perLane > MOST_LABELLED || lane < 12) return;
    const text = labelOf({ op, micro: trace.micro[at] }, to - from);
    if (text) labels.append(svg("text", { x: (from + to) / 2, y: (y0 + y1) / 2 + 4, "text-anchor": "middle", style: `font-size:11px;fill:${inkOn(fill)}` }, text));
  });
  for (const [fill, d] of paths) group.append(svg("path", { d, fill }));
  const lines = trace.sent.map(([, from, to, start, end]) => {
    const down = to > from ? 1 : 0;
    return `M${x(start).toFixed(1)} ${(y(from + down) - (down ? 2 : -2)).toFixed(1)}L${x(end).toFixed(1)} ${(y(to + 1 - down) + (down ? 2 : -2)).toFixed(1)}`;
  });
  group.append(labels, svg("path", { class: "message", d: lines.join(""), "stroke-width": trip.perLane > MOST_LABELLED ? 0.5 : 1.2 }));
  const running = Array.from({ length: trace.p }, () => svg("rect", { class: "running", rx: 1.5, visibility: "hidden" }));
  const head = svg("line", { class: "head", x1: 0, x2: 0, y1: top - 6, y2: bottom + 2 });
  const grip = svg("path", { d: `M-6 ${top - 12}h12l-6 8z`, fill: COLOURS.collective });
  const moving = svg("g", {}, head, grip);
  group.append(...running, moving);
  group.append(svg("rect", { class: "chart", x: GUTTER, y: top - 12, width: px, height: bottom - top + 12, fill: "transparent" }));
  const drawn = new Int32Array(trace.p).fill(-1);
  return {
    group,
    height: bottom - top + 34,
    timeOf: (at) => Math.min(trip.end, Math.max(0, ((at - GUTTER) / px) * trip.end)),
    show(time) {
      moving.setAttribute("transform", `translate(${x(time).toFixed(2)} 0)`);
      for (let rank = 0; rank < trace.p; rank++) {
        const at = trip.running(rank, time);
        if (at === drawn[rank]) continue;
        drawn[rank] = at;
        put(running[rank], at < 0 ? { visibility: "hidden" } : {
          visibility: "visible", x: x(trace.start[at]), y: y(rank) + 1, height: lane - 2,
          width: Math.max(1, x(trace.end[at]) - x(trace.start[at]) - 0.6),
        });
      }
    },
  };
}
