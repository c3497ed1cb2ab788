// The editor's lanes: tiles that glide to their places, memory below. (Pointer and keys: editor_input.js.)

import { COLOURS, number, svg } from "./common.js";
import { WORDS, axis, fillOf, inkOn, labelOf } from "./lanes.js";
import { heldOf, isTraining } from "./schedule.js";
import { listen } from "./editor_input.js";

const GUTTER_PX = 52;
const TILE = 28;
const MEMORY = 13;
const LANE = TILE + MEMORY + 9;
const TOP = 34;

export const EDITOR_STYLE = `
.tplab-picture .title { font-weight: 600; font-size: 15px; }
.tplab-picture .scene { overflow: hidden; }
.tplab-picture .scene svg { touch-action: pan-y; }
.tplab-picture .lane { fill: var(--soft); }
.tplab-picture .lane.can { fill: color-mix(in srgb, ${COLOURS.weightGradient} 28%, var(--paper)); }
.tplab-picture .lane.cannot { fill: color-mix(in srgb, ${COLOURS.collective} 28%, var(--paper)); }
.tplab-picture .axis line { stroke: var(--line); stroke-width: 0.5; }
.tplab-picture .axis text, .tplab-picture .small { font-size: 11px; fill: var(--quiet); }
.tplab-picture .tile { cursor: grab; transition: transform 0.18s ease-out; outline: none; }
.tplab-picture .tile rect { stroke: var(--paper); stroke-width: 0.5; }
.tplab-picture .tile text { font-size: 11px; pointer-events: none; user-select: none; }
.tplab-picture .tile .hatch { stroke: #1F2430; stroke-width: 1.5; fill: none; pointer-events: none; }
.tplab-picture .tile:focus rect { stroke: var(--ink); stroke-width: 2.5; }
.tplab-picture .tile.dragging { cursor: grabbing; transition: none; opacity: 0.85; }
.tplab-picture .tile.refused rect { stroke: ${COLOURS.collective}; stroke-width: 3; }
.tplab-picture .tile.hinted rect { stroke: ${COLOURS.weightGradient}; stroke-width: 3; stroke-dasharray: 5 3; }
.tplab-picture .caret { fill: ${COLOURS.weightGradient}; pointer-events: none; }
.tplab-picture .caret.cannot { fill: ${COLOURS.collective}; }
.tplab-picture .memory { fill: color-mix(in srgb, ${COLOURS.decode} 55%, var(--paper)); }
.tplab-picture .cap { stroke: ${COLOURS.collective}; stroke-dasharray: 3 2; }
.tplab-picture .message { min-height: 3.2em; padding: 4px 10px; border-left: 4px solid var(--line); margin: 4px 0; }
.tplab-picture .message.good { border-color: ${COLOURS.weightGradient}; }
.tplab-picture .message.bad { border-color: ${COLOURS.collective}; }
.tplab-picture .key { display: inline-flex; gap: 5px; align-items: center; font-size: 12px; }
.tplab-picture .key i { width: 12px; height: 12px; border-radius: 2px; display: inline-block; }
.tplab-picture .key .held { background: color-mix(in srgb, ${COLOURS.decode} 55%, var(--paper)); }
.tplab-picture .board { overflow-x: auto; margin: 4px 0 8px; }
.tplab-picture .verdict { font-size: 15px; font-weight: 600; margin: 6px 0; }
.tplab-picture .verdict.won::before { content: "✓ "; color: ${COLOURS.weightGradient}; }
.tplab-picture table { border-collapse: collapse; font-size: 12px; width: 100%; max-width: 760px; }
.tplab-picture th, .tplab-picture td { text-align: left; font-weight: 400; padding: 2px 12px 2px 0; background: none; }
.tplab-picture thead th { color: var(--quiet); }
.tplab-picture tr.mine th, .tplab-picture tr.mine td { font-weight: 700; }
.tplab-picture tr.over { color: var(--quiet); }
.tplab-picture td.bar { width: 34%; min-width: 70px; }
.tplab-picture td.bar span { display: block; height: 12px; background: var(--line); }
.tplab-picture td.bar i { display: block; height: 12px; background: var(--forward); }
.tplab-picture tr.mine td.bar i { background: ${COLOURS.weightGradient}; }
.tplab-picture textarea { width: 100%; font: 12px/1.4 ui-monospace, monospace; color: var(--ink); background: var(--soft); border: 1px solid var(--line); }
.tplab-picture .help, .tplab-picture summary { color: var(--quiet); font-size: 12px; margin: 6px 0; }
@media (prefers-reduced-motion: reduce) { .tplab-picture .tile { transition: none; } }
`;

/** The lanes: an SVG of one width for tables of p ranks; `show` puts a table into it, tiles glide to their places. */
export function buildDrawing(actions, { p }, width) {
  const px = width - GUTTER_PX - 10;
  const bottom = TOP + p * LANE;
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${bottom + 32}`, width, height: bottom + 32, role: "group", "aria-label": "actions of every rank, in their order",
    "aria-describedby": "help", "data-lm-suppress-shortcuts": "true",
  });
  const backdrop = svg("g", {});
  const lanes = Array.from({ length: p }, (_, rank) => svg("rect", { class: "lane", x: GUTTER_PX, y: TOP + rank * LANE, width: px, height: TILE, rx: 3 }));
  const names = lanes.map((_, rank) => svg("text", { class: "small", x: GUTTER_PX - 6, y: TOP + rank * LANE + TILE / 2 + 4, "text-anchor": "end" }, `rank ${rank}`));
  const memory = lanes.map(() => svg("path", { class: "memory" }));
  const caret = svg("rect", { class: "caret", width: 4, height: TILE + 8, rx: 2, visibility: "hidden" });
  const marks = svg("g", {});
  const layer = svg("g", {});
  picture.append(...lanes, backdrop, ...memory, ...names, marks, layer, caret);
  const tiles = new Map();
  let scale = 1;
  let shown = null;
  const x = (time) => GUTTER_PX + time * scale;
  const y = (rank) => TOP + rank * LANE;

  function tileOf(table, action) {
    let tile = tiles.get(action.key);
    if (!tile) {
      const fill = fillOf(action.op, Math.floor(action.stage / table.p), table.v);
      const rect = svg("rect", { y: 1, height: TILE - 2, rx: 3, fill });
      const text = svg("text", { y: TILE / 2 + 4, "text-anchor": "middle", style: `fill:${inkOn(fill)}` });
      const hatch = action.op === "I" ? svg("path", { class: "hatch" }) : "";
      const group = svg("g", { class: "tile", tabindex: -1, role: "button", "aria-roledescription": "action", "data-key": action.key }, rect, hatch, text);
      tile = { group, rect, text, hatch };
      tiles.set(action.key, tile);
      layer.append(group);
    }
    return tile;
  }

  /** Tiles to their places; `labels`: and say them anew, which takes longer than all else here. */
  function put(table, result, { except = "", labels = false } = {}) {
    const alive = new Set();
    table.rows.forEach((row, rank) =>
      row.forEach((action, place) => {
        alive.add(action.key);
        const position = result.first[rank] + place;
        const tile = tileOf(table, action);
        const length = Math.max(1.5, (result.end[position] - result.start[position]) * scale - 1);
        if (tile.length !== length) {
          tile.length = length;
          tile.rect.setAttribute("width", length);
          tile.text.setAttribute("x", length / 2);
          tile.text.textContent = labelOf(action, length);
          if (tile.hatch) tile.hatch.setAttribute("d", `M2 ${TILE - 6}H${Math.max(2, length - 2)}`);
        }
        const spot = `translate(${x(result.start[position]).toFixed(2)}px, ${y(rank)}px)`;
        if (action.key === except) tile.spot = "";
        else if (tile.spot !== spot) tile.group.style.transform = tile.spot = spot;
        if (!labels) return;
        const label = `${action.op}${action.micro}, ${WORDS[action.op]}, rank ${rank}, place ${place + 1} of ${row.length}, ${number(result.start[position])} to ${number(result.end[position])} F`;
        if (tile.label !== label) tile.group.setAttribute("aria-label", (tile.label = label));
      }),
    );
    for (const [key, { group }] of tiles) {
      if (alive.has(key)) continue;
      group.remove();
      tiles.delete(key);
    }
    drawMemory(table, result);
  }

  function drawMemory(table, result) {
    const held = heldOf(table);
    const most = Math.max(shown.cap ?? 0, 1, ...held.flat());
    memory.forEach((path, rank) => {
      const base = y(rank) + TILE + MEMORY + 2;
      let d = `M${GUTTER_PX} ${base}`;
      let level = 0;
      table.rows[rank].forEach((action, place) => {
        const position = result.first[rank] + place;
        const gives = action.op === "B" || action.op === "W";
        const after = gives ? held[rank][place] - 1 / table.v : held[rank][place];
        const at = action.op === "F" ? result.start[position] : result.end[position];
        if (action.op === "I" || !isTraining(table)) return;
        d += `H${x(at).toFixed(1)}V${(base - (MEMORY * after) / most).toFixed(1)}`;
        level = after;
      });
      path.setAttribute("d", `${d}H${x(result.makespan).toFixed(1)}V${base}Z`);
    });
  }

  const view = {
    svg: picture,
    fits: (table, now) => table.p === p && now === width,
    show(table, result, scores, cap) {
      shown = { table, result, cap };
      const end = 1.1 * Math.max(scores.longest, result.makespan) || 1; // room for a move that makes it longer
      scale = px / end;
      backdrop.replaceChildren(axis(end, px, x, TOP - 4, bottom - 2, "units of F (the time of one forward)"));
      const first = scores.others.find(({ name }) => name === "1F1B");
      const mark = (time, text, colour, up) => [
        svg("line", { x1: x(time), x2: x(time), y1: up - 10, y2: bottom - 4, stroke: colour, "stroke-width": 1.5, "stroke-dasharray": "4 3" }),
        svg("text", { class: "small", x: x(time) - 4, y: up, "text-anchor": "end" }, text),
      ];
      const ends = first && Math.abs(first.makespan - result.makespan) > 1e-9;
      marks.replaceChildren(
        ...(ends ? mark(first.makespan, "1F1B ends", "var(--quiet)", 12) : []),
        ...mark(result.makespan, ends || !first ? "yours ends" : "1F1B and yours end", COLOURS.weightGradient, 26),
      );
      if (cap !== null) marks.append(...capLines(table, cap));
      put(table, result, { labels: true });
    },
    focus(key, move) {
      const chosen = tiles.get(key) ?? tiles.values().next().value;
      for (const { group } of tiles.values()) if (group.tabIndex === 0 && group !== chosen.group) group.tabIndex = -1;
      chosen.group.tabIndex = 0;
      if (move) chosen.group.focus();
    },
    flash: (key) => mark(key, "refused"),
    pulse: (key) => mark(key, "hinted"),
  };
  function capLines(table, cap) {
    const most = Math.max(cap, 1, ...heldOf(table).flat());
    return memory.map((_, rank) => {
      const at = y(rank) + TILE + MEMORY + 2 - (MEMORY * cap) / most;
      return svg("line", { class: "cap", x1: GUTTER_PX, x2: GUTTER_PX + px, y1: at, y2: at });
    });
  }
  function mark(key, name) {
    const group = tiles.get(key)?.group;
    if (!group) return;
    group.classList.add(name);
    setTimeout(() => group.classList.remove(name), name === "hinted" ? 4000 : 900);
  }
  listen(view, { picture, lanes, caret, tiles, actions, x, y, put, shown: () => shown, top: TOP, lane: LANE, gutter: GUTTER_PX, width });
  return view;
}
