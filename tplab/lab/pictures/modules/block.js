// The painter's drawing: one transformer block, its four matrices striped by rank, between them the activations as each
// rank has them, and the collectives that turn one layout into the next. Attention flows down on the left, the MLP on
// the right, or below it where the page is narrow. Every gap is as high with a collective as without, so that a matrix
// stays under the pointer that paints it.

import { bytesText, number, put, reducedMotion, svg } from "./common.js";
import { MATRICES } from "./plan.js";

const [GAP, LANE, PILL, BOX, BETWEEN, TOP, EDGE] = [104, 26, 18, 24, 28, 12, 16];
const SEAM = 3; // between the parts of a fused matrix
const MORPH_MS = 350;
const DIM = 0.2; // what the pass has not reached
const NAMES = { qkv: "Q, K, V", out: "out (projection)", up: "up, with gate", down: "down" };
const BOXES = { attention: "attention", activation: "SwiGLU", "add + norm": "+ residual, norm", add: "+ residual" };
const LAYOUTS = { replicated: "same on every rank", split: "split", partial: "partial sums" };

export const BLOCK_CSS = `
.tplab-picture .matrix { cursor: pointer; outline: none; }
.tplab-picture .matrix .edge { fill: transparent; stroke: var(--line); stroke-width: 1; }
.tplab-picture .matrix:hover .edge { stroke: var(--accent); stroke-width: 2; }
.tplab-picture .matrix:focus-visible .edge { stroke: var(--accent); stroke-width: 3; }
.tplab-picture .locked .matrix { cursor: not-allowed; }
.tplab-picture svg .small { font-size: 12px; fill: var(--quiet); }
.tplab-picture svg .strong { font-weight: 600; }
.tplab-picture svg .on-red { fill: white; font-size: 11.5px; font-weight: 600; }
.tplab-picture .flow { stroke: var(--quiet); stroke-width: 1.2; fill: none; }
.tplab-picture .head { fill: var(--quiet); }
.tplab-picture .box { fill: var(--soft); stroke: var(--line); }
`;

// From dark blue for the first rank to light blue for the last; lighter on a dark page.
export function rankColour(rank, n) {
  const share = n > 1 ? rank / (n - 1) : 0;
  const [from, to] = [[11, 61, 132], [116, 193, 251]];
  const colour = `rgb(${from.map((value, at) => Math.round(value + share * (to[at] - value))).join(" ")})`;
  return `light-dark(${colour}, color-mix(in srgb, white 30%, ${colour}))`;
}

// `onTurn(matrix, direction)` when somebody paints. Returns `{ element, draw(plan, shape, width), at(t), stations(),
// destroy }`: `at` shows the pass when it has come so far, of `stations()`; a conversion is a station by itself.
export function blockScene({ onTurn }) {
  const id = `hatch-${Math.random().toString(36).slice(2)}`;
  const [back, lanes, top] = [svg("g"), svg("g"), svg("g", { "pointer-events": "none" })];
  const element = svg("svg", { role: "group", "aria-label": "the block, its matrices and activations" });
  element.append(hatches(id), back, lanes);
  const matrices = Object.fromEntries(MATRICES.map((name) => [name, matrixGroup(name, onTurn)]));
  element.append(...Object.values(matrices), top);
  const rects = new Map(); // what glides when the painting changes, by name
  let [lit, ghosts, count, request, drawn] = [[], [], 0, 0, false];

  function rect(name, parent, place, look) {
    const known = rects.get(name);
    const made = known ?? { element: svg("rect"), now: place };
    put(made.element, look);
    if (made.element.parentNode !== parent) parent.append(made.element);
    Object.assign(made, { from: made.now, to: place, used: true });
    rects.set(name, made);
  }

  function settle(animate) {
    for (const [name, each] of rects) {
      if (!each.used) {
        each.element.remove();
        rects.delete(name);
      }
      each.used = false;
    }
    cancelAnimationFrame(request);
    request = 0;
    if (!animate || reducedMotion()) return glide(1);
    const start = performance.now();
    const tick = (stamp) => {
      const share = Math.min(1, Math.max(0, (stamp - start) / MORPH_MS));
      glide(1 - (1 - share) ** 3);
      request = share < 1 ? requestAnimationFrame(tick) : 0;
    };
    request = requestAnimationFrame(tick);
  }

  function glide(share) {
    for (const each of rects.values()) {
      each.now = mix(each.from, each.to, share);
      for (const [name, value] of Object.entries(each.now)) each.element.setAttribute(name, value.toFixed(2));
    }
  }

  // Where everything is, for a width in pixels.
  function draw(plan, shape, width) {
    const two = width >= 520;
    const column = two ? (width - BETWEEN) / 2 : width;
    const lane = Math.min(190, Math.round(column * 0.48));
    const scale = Math.min(lane, 150) / Math.max(shape.intermediate, plan.steps[0].outFeatures);
    for (const group of [back, lanes, top]) group.replaceChildren();
    [lit, ghosts, count] = [[], [], 0];
    const place = { plan, shape, scale, lane, label: column - EDGE - lane - 12 };
    const middle = flow(place, plan.steps.slice(0, 4), EDGE, TOP);
    const left = EDGE + (two ? column + BETWEEN : 0);
    if (two) elbow(EDGE + lane / 2, middle, column + BETWEEN / 2, left + lane / 2);
    const end = flow(place, plan.steps.slice(4), left, two ? TOP : middle + 6);
    arrow(left + lane / 2, end, end + 24);
    text(top, left + lane + 12, end + 14, "to the next block", "small");
    const height = Math.ceil(Math.max(end + 30, middle + 24));
    put(element, { viewBox: `0 0 ${width} ${height}`, width, height });
    settle(drawn);
    drawn = true;
    at(count);
  }

  // Steps downwards from y, each behind the arrow and the activation that it takes; the y where the last one ends.
  function flow(place, steps, x, y) {
    for (const step of steps) {
      y = gap(place, step, x, y);
      if (step.choice === null) y = box(place, step, x, y);
      else y = matrix(place, step, x, y);
      count += 1;
    }
    return y;
  }

  function gap(place, step, x, y) {
    const axis = x + place.lane / 2;
    arrow(axis, y, y + GAP);
    const first = step.name === "qkv" ? `block input${place.label < 125 ? "" : ", "}` : "";
    const told = (layout) => (first && place.label < 125 ? first : first + layoutWords(step, layout));
    if (step.conversion === null) {
      activation(place, `${step.name}:in`, step.input, x, y + (GAP - LANE) / 2, told(step.input));
      return y + GAP;
    }
    const after = y + GAP - LANE - 9;
    activation(place, `${step.name}:before`, step.arrives, x, y + 6, told(step.arrives));
    count += 1;
    const pill = svg("g", { class: "conversion", "data-before": step.name });
    pill.append(svg("title", {}, step.why));
    const red = step.collective !== null;
    const words = red ? `${step.collective} ${bytesText(step.payload)}` : "local slice, free";
    const centre = y + GAP / 2 - 1;
    const wide = Math.max(place.lane, 7 * words.length + 14);
    const about = { x: axis - wide / 2, y: centre - PILL / 2, width: wide, height: PILL, rx: 9 };
    pill.append(svg("rect", { ...about, fill: red ? "#B21405" : "var(--soft)", stroke: red ? "none" : "var(--line)" }));
    pill.append(svg("text", { x: axis, y: centre + 4, "text-anchor": "middle", class: red ? "on-red" : "small" }, words));
    top.append(pill);
    lit.push({ element: pill, station: count - 1 });
    const moving = svg("g", { "aria-hidden": "true" });
    top.append(moving);
    const travellers = rows(place, step.arrives, x, y + 6).map((from, rank) => ({
      element: svg("rect", { fill: rankColour(rank, place.plan.n), rx: 1.5 }),
      from,
      to: rows(place, step.input, x, after)[rank],
      centre: red ? centre - from.height / 2 : null,
    }));
    ghosts.push({ station: count - 1, group: moving, travellers });
    activation(place, `${step.name}:in`, step.input, x, after, layoutWords(step, step.input));
    return y + GAP;
  }

  // An activation: a row for each rank, as wide as what it has of the features.
  function activation(place, name, layout, x, y, words) {
    const group = svg("g", { class: "activation", "data-at": name, "data-layout": layout });
    lanes.append(group);
    lit.push({ element: group, station: count });
    group.append(svg("rect", { x, y: y - 1, width: place.lane, height: LANE + 2, rx: 2, class: "box" }));
    rows(place, layout, x, y).forEach((row, rank) => {
      const look = { fill: rankColour(rank, place.plan.n), rx: 1.5 };
      rect(`${name}:${rank}`, group, { ...row, opacity: layout === "partial" ? 0.55 : 1 }, look);
      if (layout === "partial") rect(`${name}:${rank}:part`, group, { ...row, opacity: 1 }, { fill: `url(#${id}-part)` });
    });
    if (layout === "partial") text(group, x - 4, y + LANE / 2 + 5, "Σ", "strong", "end");
    wrapped(group, x + place.lane + 12, y + LANE / 2, words, place.label);
  }

  function box(place, step, x, y) {
    const width = Math.min(place.lane, 132);
    const group = svg("g", {});
    group.append(svg("rect", { x: x + (place.lane - width) / 2, y, width, height: BOX, rx: 3, class: "box" }));
    text(group, x + place.lane / 2, y + 16, BOXES[step.name], "", "middle");
    top.append(group);
    lit.push({ element: group, station: count });
    return y + BOX;
  }

  function matrix(place, step, x, y) {
    const { plan, scale, lane } = place;
    const group = matrices[step.name];
    lit.push({ element: group, station: count });
    for (const old of group.querySelectorAll(".words")) old.remove();
    const [parts, width, height] = matrixParts(plan, step, place.shape, scale);
    const left = x + (lane - width) / 2;
    const upright = step.choice === "column";
    parts.forEach((part, at) => {
      for (let rank = 0; rank < plan.n; rank += 1) {
        const whole = step.choice === "replicated";
        const share = whole ? 1 : 1 / plan.n;
        const stripe = {
          x: left + part.x + (upright && !whole ? part.width * share * rank : 0),
          y: y + part.y + (!upright && !whole ? part.height * share * rank : 0),
          width: part.width * (upright ? share : 1),
          height: part.height * (upright ? 1 : share),
        };
        // All ranks have all of it: the colours lie over one another, and the hatch says so.
        const look = { fill: rankColour(rank, plan.n), stroke: "white", "stroke-width": 0.6 };
        rect(`${step.name}:${at}:${rank}`, group, { ...stripe, opacity: whole && rank ? 0 : 1 }, look);
      }
      if (step.choice === "replicated" || part.copied) {
        const over = { x: left + part.x, y: y + part.y, width: part.width, height: part.height, opacity: 1 };
        rect(`${step.name}:${at}:hatch`, group, over, { fill: `url(#${id}-copy)` });
      }
    });
    const edge = group.querySelector(".edge");
    put(edge, { x: left - 3, y: y - 3, width: width + 6, height: height + 6, rx: 3 });
    group.append(edge); // above its stripes
    // Its words can be clicked, too, and what lies between.
    put(group.querySelector(".hit"), { x, y: y - 8, width: lane + 12 + place.label, height: height + 16 });
    const how = step.choice === "replicated" ? "on every rank" : `by ${step.choice}`;
    const held = `${bytesText(step.weights)} per rank`;
    put(group, {
      "aria-label": `${NAMES[step.name]}: ${step.choice === "replicated" ? "replicated" : how}, ${held}`,
      "data-choice": step.choice,
    });
    const words = svg("g", { class: "words" });
    const [beside, centre] = [x + lane + 12, y + height / 2];
    text(words, beside, centre - 12, place.label < 125 ? NAMES[step.name].split(" (")[0] : NAMES[step.name], "strong");
    text(words, beside, centre + 4, how, "strong");
    text(words, beside, centre + 20, held, "small");
    words.append(svg("title", {}, `${number(step.inFeatures, 7)} × ${number(step.outFeatures, 7)}`));
    group.append(words);
    return y + height;
  }

  function text(parent, x, y, words, name = "", anchor = "start") {
    parent.append(svg("text", { x, y, class: name, "text-anchor": anchor }, words));
  }

  // One line where it fits, two where it does not: at its last comma or space.
  function wrapped(parent, x, y, words, room) {
    const cut = words.length * 7.1 <= room ? -1 : Math.max(words.lastIndexOf(", ") + 1, words.indexOf(" ", words.length / 2.6));
    if (cut < 1) return text(parent, x, y + 4, words, "small");
    text(parent, x, y - 3, words.slice(0, cut), "small");
    text(parent, x, y + 11, words.slice(cut).trim(), "small");
  }

  function arrow(x, from, to) {
    back.append(svg("path", { d: `M${x} ${from}V${to - 3}`, class: "flow" }));
    back.append(svg("path", { d: `M${x - 4} ${to - 7}h8l-4 7z`, class: "head" }));
  }

  // From below the attention to above the MLP.
  function elbow(x, y, middle, to) {
    back.append(svg("path", { d: `M${x} ${y}v16H${middle}V4H${to}V${TOP}`, class: "flow" }));
  }

  function at(t) {
    for (const { element: each, station } of lit) put(each, { opacity: t >= count || t >= station ? 1 : DIM });
    for (const { station, group, travellers } of ghosts) {
      const share = t - station;
      const seen = t < count && share > 0 && share < 1;
      if (!seen) {
        if (group.firstChild) group.replaceChildren();
        continue;
      }
      if (!group.firstChild) group.append(...travellers.map((each) => each.element));
      for (const each of travellers) put(each.element, travelled(each, share));
    }
  }

  const destroy = () => cancelAnimationFrame(request);
  return { element, draw, at, stations: () => count, destroy };
}

// What a rank has of an activation, as a row of its lane.
function rows({ plan: { n }, lane }, layout, x, y) {
  const height = (LANE - 2 - (n - 1)) / n;
  return Array.from({ length: n }, (_, rank) => ({
    x: x + 2 + (layout === "split" ? (rank * (lane - 4)) / n : 0),
    y: y + 1 + rank * (height + 1),
    width: layout === "split" ? (lane - 4) / n : lane - 4,
    height,
  }));
}

// A row on its way: through the middle, where the ranks' rows meet, or straight where nothing is exchanged.
function travelled({ from, to, centre }, share) {
  if (centre === null) return mix(from, to, share);
  const meeting = { ...from, y: centre };
  return share < 0.5 ? mix(from, meeting, share * 2) : mix(meeting, to, share * 2 - 1);
}

function mix(from, to, share) {
  return Object.fromEntries(Object.entries(to).map(([name, value]) => {
    const start = from[name] ?? value;
    return [name, start + (value - start) * share];
  }));
}

// The rectangles of a matrix W in y = x·W, inputs down and outputs across, all four at one scale; and its size.
function matrixParts(plan, step, shape, scale) {
  const high = step.inFeatures * scale;
  if (step.name === "up") {
    const wide = shape.intermediate * scale;
    return [[0, high + SEAM].map((y) => ({ x: 0, y, width: wide, height: high })), wide, 2 * high + SEAM];
  }
  if (step.name !== "qkv") {
    const wide = step.outFeatures * scale;
    return [[{ x: 0, y: 0, width: wide, height: high }], wide, high];
  }
  const perHead = (shape.hidden / shape.num_heads) * scale;
  let x = 0;
  const parts = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads].map((heads, at) => {
    const part = { x, y: 0, width: heads * perHead, height: high, copied: at > 0 && plan.copied };
    x += part.width + SEAM;
    return part;
  });
  return [parts, x - SEAM, high];
}

function layoutWords(step, layout) {
  const byHeads = layout === "split" && (step.name === "attention" || step.name === "out");
  return LAYOUTS[layout] + (byHeads ? " by heads" : "");
}

function matrixGroup(name, onTurn) {
  const group = svg("g", { class: "matrix", tabindex: 0, role: "button", "data-matrix": name });
  group.append(svg("rect", { class: "hit", fill: "transparent" }), svg("rect", { class: "edge" }));
  group.addEventListener("click", () => onTurn(name, 1));
  group.addEventListener("keydown", (event) => {
    const turns = { Enter: 1, " ": 1, ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (!(event.key in turns)) return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab's own shortcuts listen, too
    onTurn(name, turns[event.key]);
  });
  return group;
}

function hatches(id) {
  const pattern = (name, turn, colour) => {
    const size = { width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${turn})` };
    const line = svg("rect", { width: 2, height: 6, fill: colour });
    return svg("pattern", { id: `${id}-${name}`, ...size }, line);
  };
  return svg("defs", {}, pattern("copy", 45, "rgb(255 255 255 / 0.45)"), pattern("part", -45, "rgb(255 255 255 / 0.55)"));
}
