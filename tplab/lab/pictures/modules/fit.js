// "Will it fit?": the fullest GPU of a layout as a vessel. It fills with workspace, weights, activations and the cache,
// a block of it for each request; what passes the engine's limit is red, what the card cannot hold lies beside it.

import { dropdown, frame, holdsFocus, html, number, put, reducedMotion, slider, statusLine, svg } from "./common.js";
import { fewerGpus, fullestRank, longestContext, mostRequests, whatWouldHelp, whyNotCut } from "./fitmodel.js";

const FIT_CSS = `
.tplab-picture .fit { display: flex; flex-wrap: wrap; gap: 8px 28px; align-items: flex-start; }
.tplab-picture .vessel { flex: 0 1 430px; width: 100%; min-width: 0; }
.tplab-picture .said { flex: 1 1 300px; min-width: 0; max-width: 640px; }
.tplab-picture .answer { border-left: 5px solid #007E5D; background: var(--soft); padding: 8px 14px; font-size: 15px; }
.tplab-picture .answer.no { border-left-color: #B21405; }
.tplab-picture .answer .status { color: var(--ink); }
.tplab-picture .answer strong { display: block; font-size: 17px; }
.tplab-picture h4 { margin: 12px 0 4px; font-size: 13px; }
.tplab-picture .ways { display: flex; flex-wrap: wrap; gap: 6px; }
.tplab-picture svg .small { font-size: 12px; fill: var(--quiet); }
.tplab-picture svg .strong { font-weight: 600; }
.tplab-picture .card-edge { fill: none; stroke: var(--ink); stroke-width: 2; }
.tplab-picture .card-body { fill: var(--soft); }
.tplab-picture .limit { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 6 4; }
.tplab-picture .drop { animation: fit-drop 0.4s ease-in; }
@keyframes fit-drop { from { transform: translateY(-220px); opacity: 0; } }
@media (prefers-reduced-motion: reduce) { .tplab-picture .drop { animation: none; } }
.tplab-picture .leader { stroke: var(--line); fill: none; }
`;
const [RIM, GROUND, LEFT, HEIGHT] = [34, 334, 70, 388]; // of the drawing; the card stands from RIM to GROUND
const [WIDEST, LABELS] = [430, 176]; // of the drawing, and room for words beside the card, in pixels
const FILL_MS = 350;
const PARTS = [
  ["workspace", "workspace", "#8A94A1"], ["weights", "weights", "#3B6DB5"], ["activations", "activations", "#FFC813"],
  ["kv", "KV cache", "#74C1FB"],
];
const MOST_DROPS = 22;
const [MOST_BATCH, MOST_CONTEXT] = [1024, 131072]; // as fit.py offers

export function render({ model, el }) {
  const known = model.get("known");
  const root = frame(el, "Will it fit?", FIT_CSS);
  const vessel = vesselOf();
  const status = statusLine();
  const verdict = html("strong", {});
  const copied = html("span", { class: "status", role: "status" });
  const answer = html("div", { class: "answer" }, verdict, status.element);
  const copy = html("button", { type: "button", onclick: () => copyText(status.element, copied) }, "Copy the answer");
  const [heading, ways] = [html("h4", {}), html("div", { class: "ways" })];
  const note = html("p", { class: "status" });
  const said = html("div", { class: "said" }, answer, html("div", { class: "row" }, copy, copied), heading, ways, note);
  const set = (name) => (value) => share({ [name]: value });
  const choices = (entries) => entries.map(([key, { name }]) => [name, key]);
  const plain = (names) => names.map((each) => [each, each]);
  const controls = {
    model: dropdown({ label: "model", options: choices(Object.entries(known.models)), onChange: takeModel }),
    weights: dropdown({ label: "weights", options: plain(Object.keys(known.itemsize)), onChange: set("weights") }),
    cache: dropdown({ label: "KV cache", options: plain(["bf16", "fp8"]), onChange: set("cache") }),
    gpu: dropdown({ label: "GPU", options: choices(Object.entries(known.gpus)), onChange: set("gpu") }),
    pp: slider({ label: "PP", min: 1, max: 16, value: 1, format: String, onInput: set("pp") }),
    batch: slider({ label: "batch", min: 1, max: MOST_BATCH, value: 1, log: true, format: counted, onInput: (value) => share({ batch: Math.round(value) }) }),
    context: slider({ label: "context", min: 128, max: MOST_CONTEXT, value: 128, log: true, format: counted, onInput: (value) => share({ context: Math.round(value / 16) * 16 }) }),
  };
  const degrees = html("span", {});
  const { pp, batch, context, ...lists } = controls;
  const row = (...parts) => html("div", { class: "row" }, ...parts);
  root.append(row(html("span", { class: "badge" }, "MODEL"), ...Object.values(lists).map((each) => each.element)), row(degrees, pp.element, batch.element, context.element));
  const place = html("div", { class: "vessel" }, vessel.element);
  root.append(html("div", { class: "fit" }, place, said));
  const observer = new ResizeObserver(() => place.clientWidth && vessel.resize(place.clientWidth));
  observer.observe(place);
  let offered = "";

  function share(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  // A model that cannot be shared by so many GPUs is shared by the most that it can be, below that.
  function takeModel(name) {
    const able = Object.keys(known.models[name].cuts).map(Number).filter((each) => each <= model.get("tp"));
    share({ model: name, tp: Math.max(...able), pp: Math.min(model.get("pp"), known.models[name].layers) });
  }

  function show() {
    const asked = Object.fromEntries(["model", "gpu", "weights", "cache", "tp", "pp", "batch", "context"].map((name) => [name, model.get(name)]));
    for (const [name, control] of Object.entries(controls)) control.set(asked[name]);
    const able = Object.keys(known.models[asked.model].cuts);
    if (able.join() + asked.tp !== offered) {
      offered = able.join() + asked.tp;
      const tp = dropdown({ label: "TP", options: able.map((each) => [each, Number(each)]), value: asked.tp, onChange: set("tp") });
      const focused = holdsFocus(degrees);
      degrees.replaceChildren(tp.element);
      if (focused) tp.input.focus();
    }
    const cannot = whyNotCut(known, asked);
    put(vessel.element, { opacity: cannot ? 0.3 : 1 }); // what is drawn is not what is asked
    if (cannot) return say(false, "It cannot be cut so.", cannot, [], "");
    const rank = fullestRank(known, asked, asked.batch);
    const most = mostRequests(known, asked);
    vessel.fill(known, asked, rank, most);
    const fits = rank.free >= 0;
    const text = sentence(known, asked, rank, most);
    if (fits) return say(true, "It fits.", text, limits(asked, most), "How far it goes; press one");
    const helps = whatWouldHelp(known, asked);
    say(false, "It does not fit.", text, helps, helps.length ? "Any of these would do; press one" : "No single change would do");
  }

  // The largest batch, the longest context, and the fewest GPUs, each with all else as it is, as far as is offered.
  function limits(asked, most) {
    const fewer = fewerGpus(known, asked);
    const upTo = (name, found, offer) => ({
      words: `a ${name} of ${counted(Math.min(found, offer))}${found > offer ? " and more" : ""}`,
      change: { [name]: Math.min(found, offer) },
    });
    const ways = [upTo("batch", most, MOST_BATCH), upTo("context", longestContext(known, asked), MOST_CONTEXT)];
    if (fewer) ways.push({ words: `${gpus(fewer)}: TP ${fewer.tp} × PP ${fewer.pp}`, change: fewer });
    return ways;
  }

  function say(fits, title, text, changes, about) {
    put(answer, { class: fits ? "answer" : "answer no" });
    verdict.textContent = title;
    status.say(text);
    copied.textContent = "";
    heading.textContent = about;
    const inside = holdsFocus(ways);
    ways.replaceChildren(...changes.map(({ words, change }) => html("button", { type: "button", onclick: () => share(change) }, words)));
    if (inside) (ways.firstChild ?? copy).focus();
    note.textContent = `Weights and cache are exact; activations and workspace are estimates of what a serving engine takes. It leaves ${number(100 * (1 - known.share))} % of the card alone. GB = 10⁹ bytes.`;
    if (model.get("answer") !== text) share({ answer: text });
  }

  const watched = ["model", "gpu", "weights", "cache", "tp", "pp", "batch", "context"];
  watched.forEach((name) => model.on(`change:${name}`, show));
  vessel.resize(WIDEST);
  show();
  return () => {
    watched.forEach((name) => model.off(`change:${name}`, show));
    observer.disconnect();
    vessel.destroy();
  };
}

function sentence(known, asked, rank, most) {
  const what = `${known.models[asked.model].name} in ${asked.weights}`;
  const card = known.gpus[asked.gpu].name;
  const num = asked.tp * asked.pp;
  const where = num === 1 ? `one ${card}` : `${num} × ${card} (TP ${asked.tp} × PP ${asked.pp})`;
  const load = `${counted(asked.batch)} ${asked.batch === 1 ? "request" : "requests"} of ${counted(asked.context)} tokens`;
  const needs = `${num === 1 ? "they need" : "the fullest GPU needs"} ${gigabytes(rank.total)}`;
  const limit = `the ${gigabytes(rank.usable)} that an engine may take`;
  if (rank.free >= 0) return `${what} fits on ${where} with ${load}: ${needs} of ${limit}, and ${counted(most)} would fit.`;
  const room = most ? `only ${counted(most)} would fit` : "not even one would fit";
  return `${what} does not fit on ${where} with ${load}: ${needs}, ${gigabytes(-rank.free)} more than ${limit}; ${room}.`;
}

// The drawing: `fill` shows a rank; levels glide from what was shown before.
function vesselOf() {
  const id = `fit-${Math.random().toString(36).slice(2)}`;
  const element = svg("svg", { role: "img" });
  const body = { x: LEFT, y: RIM, height: GROUND - RIM, rx: 8 };
  const clip = svg("rect", body);
  const inside = svg("clipPath", { id: `${id}-inside` }, clip);
  const [behind, outline] = [svg("rect", { ...body, class: "card-body" }), svg("rect", { ...body, class: "card-edge" })];
  const pattern = blocks(`${id}-kv`, "#74C1FB", "#FFFFFF");
  const ghost = blocks(`${id}-free`, "none", "var(--line)");
  element.append(svg("defs", {}, inside, pattern, ghost), behind);
  const liquid = svg("g", { "clip-path": `url(#${id}-inside)` });
  const levels = Object.fromEntries(PARTS.map(([key, , colour]) => [key, svg("rect", { x: LEFT, fill: key === "kv" ? `url(#${id}-kv)` : colour })]));
  const room = svg("rect", { x: LEFT, fill: `url(#${id}-free)` });
  const over = svg("rect", { x: LEFT, fill: "#B21405", opacity: 0.82, class: "over" });
  liquid.append(room, ...Object.values(levels), over);
  const contacts = svg("path", { stroke: "#C9A227", "stroke-width": 9, "stroke-dasharray": "6 4" });
  const limit = svg("path", { class: "limit" });
  const [drops, words] = [svg("g", { class: "drops" }), svg("g", {})];
  element.append(liquid, contacts, outline, limit, drops, words);
  let [now, from, to, request, look, right] = [null, null, null, 0, null, 0];

  // For a width in pixels: words stay as large as they are, the card becomes narrower.
  function resize(width) {
    right = Math.max(LEFT + 40, Math.min(width, WIDEST) - LABELS - 24);
    put(element, { viewBox: `0 0 ${right + LABELS + 24} ${HEIGHT}` });
    for (const each of [clip, behind, outline, room, over, ...Object.values(levels)]) put(each, { width: right - LEFT });
    put(contacts, { d: `M${LEFT + 16} ${GROUND + 5}H${right - 16}` });
    if (now) level(now);
  }

  function fill(known, asked, rank, most) {
    const { memory, name } = known.gpus[asked.gpu];
    const columns = Math.min(8, Math.max(1, asked.batch));
    const height = (rank.kv / memory) * (GROUND - RIM);
    const rowsDrawn = Math.max(1, Math.min(Math.ceil(asked.batch / columns), Math.floor(height / 5)));
    const target = Object.fromEntries(PARTS.map(([key]) => [key, rank[key] / memory]));
    const spilt = Math.max(0, rank.total - memory);
    Object.assign(target, { usable: rank.usable / memory, block: target.kv / rowsDrawn, drops: 0 });
    look = { known, asked, rank, most, name, memory, columns, spilt, perDrop: perDrop(spilt) };
    target.drops = spilt ? Math.ceil(spilt / look.perDrop) : 0;
    put(element, { "aria-label": `${name}: ${PARTS.map(([key, part]) => `${part} ${gigabytes(rank[key])}`).join(", ")}; engine limit ${gigabytes(rank.usable)}, card ${gigabytes(memory)}` });
    cancelAnimationFrame(request);
    [from, to, request] = [now ?? target, target, 0];
    if (!now || reducedMotion()) return level(target);
    const start = performance.now();
    const tick = (stamp) => {
      const share = Math.min(1, Math.max(0, (stamp - start) / FILL_MS));
      const eased = 1 - (1 - share) ** 3;
      level(Object.fromEntries(Object.entries(to).map(([key, value]) => [key, from[key] + (value - from[key]) * eased])));
      request = share < 1 ? requestAnimationFrame(tick) : 0;
    };
    request = requestAnimationFrame(tick);
  }

  function level(values) {
    now = values;
    const scale = GROUND - RIM;
    let bottom = GROUND;
    const labels = [];
    for (const [key, part] of PARTS) {
      const height = values[key] * scale;
      put(levels[key], { y: (bottom - height).toFixed(1), height: height.toFixed(1) });
      const middle = Math.max(RIM + 4, bottom - height / 2);
      labels.push([middle, `${part} ${gigabytes(values[key] * look.memory)}`, "small"]);
      if (key === "kv") {
        const size = { width: (right - LEFT) / look.columns, height: Math.max(2, values.block * scale).toFixed(2) };
        place(pattern, size, bottom);
        place(ghost, size, bottom);
      }
      bottom -= height;
    }
    const edge = GROUND - values.usable * scale;
    const top = Math.max(RIM, bottom);
    const free = Math.max(0, top - edge);
    put(room, { y: edge.toFixed(1), height: free.toFixed(1) });
    put(over, { y: top.toFixed(1), height: Math.max(0, edge - top).toFixed(1) });
    put(limit, { d: `M${LEFT - 8} ${edge.toFixed(1)}H${right + 8}` });
    labels.push([edge, `engine limit ${gigabytes(look.rank.usable)}`, "small strong"], [RIM - 8, `${look.name}, ${gigabytes(look.memory)}`, "strong"]);
    const more = look.most - look.asked.batch;
    if (free > 16 && more > 0) labels.push([(edge + top) / 2, `room for ${counted(more)} more`, "small"]);
    write(labels, values);
    spill(Math.round(values.drops));
  }

  function place(cells, size, bottom) {
    put(cells, { ...size, patternTransform: `translate(${LEFT} ${bottom.toFixed(1)})` });
    put(cells.firstChild, { width: size.width - 2, height: Math.max(1, size.height - 1.5) });
  }

  // Words beside the card, each as near to what it names as the others leave it.
  function write(labels, values) {
    const sorted = labels.sort((a, b) => a[0] - b[0]);
    const places = [];
    for (const [y] of sorted) places.push(Math.max(y, (places[places.length - 1] ?? -99) + 16));
    let highest = GROUND + 14;
    for (let at = places.length - 1; at >= 0; at -= 1) {
      places[at] = Math.min(places[at], highest);
      highest = places[at] - 16;
    }
    words.replaceChildren(...sorted.flatMap(([y, text, name], at) => [
      svg("path", { class: "leader", d: `M${right + 2} ${y.toFixed(1)}L${right + 20} ${places[at].toFixed(1)}` }),
      svg("text", { x: right + 24, y: (places[at] + 4).toFixed(1), class: name }, text),
    ]));
    if (values.drops >= 0.5) {
      words.append(svg("text", { x: 4, y: GROUND + 30, class: "small strong" }, `does not go in: ${gigabytes(look.spilt)}`));
      words.append(svg("text", { x: 4, y: GROUND + 46, class: "small" }, `a block is ${gigabytes(look.perDrop)}`));
    }
  }

  // Red blocks beside the card, from the ground up, on both sides.
  function spill(count) {
    while (drops.childElementCount > count) drops.lastChild.remove();
    while (drops.childElementCount < count) {
      const at = drops.childElementCount;
      const y = GROUND - 15 - Math.floor(at / 4) * 15 + 9;
      const x = [LEFT - 19, LEFT - 34, LEFT - 49, LEFT - 64][at % 4];
      drops.append(svg("rect", { x, y, width: 13, height: 13, rx: 2, fill: "#B21405", class: "drop" }));
    }
  }

  return { element, fill, resize, destroy: () => cancelAnimationFrame(request) };
}

function blocks(id, fill, stroke) {
  const cell = svg("rect", { x: 1, y: 0.75, rx: 1.5, fill, stroke, "stroke-width": fill === "none" ? 1 : 0 });
  return svg("pattern", { id, patternUnits: "userSpaceOnUse", width: 10, height: 10 }, cell);
}

// Bytes of a red block, a round number of GB, so that there are not too many.
function perDrop(spilt) {
  const least = Math.max(spilt / MOST_DROPS, 1e9) / 1e9;
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= least - 1e-9) * 1e9;
}

function copyText(element, told) {
  const done = () => { told.textContent = "Copied."; };
  const byHand = () => {
    getSelection().selectAllChildren(element);
    told.textContent = "The answer is selected: copy it with Ctrl+C.";
  };
  if (!navigator.clipboard) return byHand();
  navigator.clipboard.writeText(element.textContent).then(done, byHand);
}

const gpus = ({ tp, pp }) => (tp * pp === 1 ? "one GPU" : `${tp * pp} GPUs`);
const counted = (value) => Math.round(value).toLocaleString("en-US");
const gigabytes = (bytes) => `${number(bytes / 1e9)} GB`;
