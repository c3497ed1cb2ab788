// Below the race: how each algorithm spends its time, on one clock; and which one wins at which size.

import { html, svg, bytesText, number } from "./common.js";
import { NAMES, bandsOf, timeUs } from "./race_plan.js";

const LOOKS = {
  "one-shot": { colour: "#C7719E", dash: "", shape: "circle" },
  "recursive-doubling": { colour: "#12946F", dash: "7 3", shape: "square" },
  "two-shot": { colour: "#D98E04", dash: "2 3", shape: "diamond" },
  ring: { colour: "#4A8FE0", dash: "10 3 2 3", shape: "triangle" },
};
const SIZES = { least: 2 ** 10, most: 2 ** 30 };
const BOX = { left: 40, right: 404, top: 26, bottom: 172, width: 540, height: 232 };

export const CHART_CSS = `
.race-charts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 8px 24px;
  margin-top: 10px;
}
.race-charts figure { margin: 0; min-width: 0; }
.race-charts figcaption { font-weight: 600; margin-bottom: 4px; }
.race-charts .note { color: var(--quiet); font-size: 12px; }
.race-strips { display: grid; grid-template-columns: auto 1fr; gap: 0 10px; }
.race-strips .names > div, .race-strips .track { height: 26px; line-height: 26px; white-space: nowrap; }
.race-tracks { position: relative; cursor: ew-resize; touch-action: pan-y; min-width: 0; }
.race-strips .track { position: relative; border-bottom: 1px solid var(--line); }
.race-strips .track i { position: absolute; top: 5px; height: 16px; }
.race-strips .head { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: var(--ink); }
.race-bytes { background: #4A8FE0; }
.race-wait { background: repeating-linear-gradient(135deg, #E0A008 0 3px, #E0A00855 3px 6px); }
.race-key { display: inline-block; width: 22px; height: 11px; margin: 0 5px 0 0; vertical-align: -1px; }
.race-charts svg { max-width: 640px; cursor: ew-resize; touch-action: pan-y; }
.race-charts svg text { font-size: 12px; }
`;

/** How each algorithm spends its time. `onSeek(part)`: somebody points at a time, as a part of the whole. */
export function raceStrips(onSeek) {
  const names = html("div", { class: "names", "aria-hidden": "true" });
  const tracks = html("div", { class: "race-tracks", "aria-hidden": "true" });
  const head = html("div", { class: "head" });
  const element = html(
    "figure", {},
    html("figcaption", {}, "One clock"),
    html("div", { class: "race-strips" }, names, tracks),
    html("div", { class: "note" },
      html("span", { class: "race-key race-bytes" }), "bytes at β, ",
      html("span", { class: "race-key race-wait" }), "α of each step. Drag to move the clock."),
  );
  dragged(tracks, (part) => onSeek(part));
  function build(plans, total) {
    names.replaceChildren(...plans.map(({ algorithm }) => html("div", {}, NAMES[algorithm])));
    const part = (us) => `${(100 * us) / total}%`;
    tracks.replaceChildren(
      ...plans.map(({ steps }) =>
        html("div", { class: "track" },
          ...steps.flatMap(({ start, bytesEnd, end }) => [
            html("i", { class: "race-bytes", style: `left:${part(start)};width:${part(bytesEnd - start)}` }),
            html("i", {
              class: "race-wait",
              style: `left:${part(bytesEnd)};width:calc(${part(end - bytesEnd)} - 1px)`,
            }),
          ])),
      ),
      head,
    );
  }
  const draw = (part) => (head.style.left = `${(100 * part).toFixed(2)}%`);
  return { element, build, draw };
}

function dragged(element, tell) {
  const move = (event) => {
    const { left, width } = element.getBoundingClientRect();
    tell(Math.min(1, Math.max(0, (event.clientX - left) / width)));
  };
  element.addEventListener("pointerdown", (event) => {
    event.preventDefault(); // no selection of text
    element.setPointerCapture(event.pointerId);
    move(event);
  });
  element.addEventListener("pointermove", (event) => {
    if (element.hasPointerCapture(event.pointerId)) move(event);
  });
}

const across = (nbytes) =>
  BOX.left + ((BOX.right - BOX.left) * Math.log(nbytes / SIZES.least)) / Math.log(SIZES.most / SIZES.least);

/** Times as long as the fastest, by size. `onSize(bytes)`: somebody points at a size. */
export function raceCrossing(onSize) {
  const picture = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
  const element = html("figure", {}, html("figcaption", {}, "Times as long as the fastest, by size"), picture);
  dragged(picture, (part) => {
    const inside = Math.min(1, Math.max(0, (part * BOX.width - BOX.left) / (BOX.right - BOX.left)));
    onSize(2 ** Math.round(Math.log2(SIZES.least) + inside * Math.log2(SIZES.most / SIZES.least)));
  });

  function build(algorithms, settings, measured, label) {
    const sizes = Array.from({ length: 81 }, (_, i) => SIZES.least * (SIZES.most / SIZES.least) ** (i / 80));
    const times = (nbytes) => algorithms.map((each) => timeUs(each, { ...settings, nbytes }));
    const ratios = sizes.map((nbytes) => {
      const all = times(nbytes);
      return all.map((us) => us / Math.min(...all));
    });
    const dots = dotsOf(algorithms, settings, measured);
    const most = Math.max(1.5, ...ratios.flat(), ...dots.map(({ ratio }) => ratio));
    const up = (ratio) => BOX.bottom - ((BOX.bottom - BOX.top) * Math.log(ratio)) / Math.log(most * 1.08);
    const children = [...grid(most, up), ...bandMarks(algorithms, settings)];
    algorithms.forEach((algorithm, index) => {
      const { colour, dash } = LOOKS[algorithm];
      const points = sizes.map((nbytes, i) => `${across(nbytes).toFixed(1)},${up(ratios[i][index]).toFixed(1)}`);
      const look = { fill: "none", stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash };
      children.push(svg("polyline", { points: points.join(" "), ...look }));
    });
    const here = across(Math.min(SIZES.most, Math.max(SIZES.least, settings.nbytes)));
    children.push(
      svg("line", { x1: here, x2: here, y1: BOX.top - 6, y2: BOX.bottom, stroke: "var(--ink)", "stroke-width": 1.5 }),
      svg(
        "text", { x: here, y: BOX.top - 11, "text-anchor": "middle", "font-weight": 600 },
        bytesText(settings.nbytes),
      ),
      ...dots.map(({ algorithm, nbytes, ratio }) => mark(algorithm, across(nbytes), up(ratio), true)),
      ...endLabels(algorithms, ratios.at(-1), up),
    );
    picture.replaceChildren(...children);
    picture.setAttribute("aria-label", label);
  }
  return { element, build };
}

function dotsOf(algorithms, { n }, measured) {
  const here = measured.filter((each) => each.num_ranks === n && algorithms.includes(each.algorithm));
  return here.map((each) => {
    const beside = here.filter(({ nbytes, badge }) => nbytes === each.nbytes && badge === each.badge);
    return { ...each, ratio: each.us / Math.min(...beside.map(({ us }) => us)) };
  });
}

function grid(most, up) {
  const children = [];
  for (const ratio of [1, 2, 5, 10, 20, 50, 100].filter((each) => each <= most * 1.05)) {
    children.push(
      svg("line", {
        ...{ x1: BOX.left, x2: BOX.right, y1: up(ratio), y2: up(ratio) },
        ...{ stroke: "var(--line)", opacity: ratio === 1 ? 1 : 0.5 },
      }),
      svg("text", { x: BOX.left - 6, y: up(ratio) + 4, "text-anchor": "end" }, `${ratio} ×`),
    );
  }
  for (const power of [10, 15, 20, 25, 30]) {
    const x = across(2 ** power);
    children.push(svg("text", { x, y: BOX.bottom + 46, "text-anchor": "middle" }, bytesText(2 ** power)));
    children.push(svg("line", { x1: x, x2: x, y1: BOX.bottom + 28, y2: BOX.bottom + 33, stroke: "var(--quiet)" }));
  }
  return children;
}

// Below the plot: who is the fastest from where to where.
function bandMarks(algorithms, settings) {
  const inside = (nbytes) => across(Math.min(SIZES.most, Math.max(SIZES.least, nbytes)));
  return bandsOf(algorithms, settings).flatMap(({ algorithms: [first, ...others], from, to }) => {
    const [x1, x2] = [inside(from), inside(to)];
    if (x2 - x1 < 1) return [];
    const words = [first, ...others].map((each) => NAMES[each].toLowerCase()).join(" = ");
    const text = svg("text", { x: (x1 + x2) / 2, y: BOX.bottom + 22, "text-anchor": "middle" }, words);
    const bar = { x: x1, y: BOX.bottom + 3, width: x2 - x1 - 1, height: 6, fill: LOOKS[first].colour };
    return [svg("rect", bar), ...(x2 - x1 > words.length * 6.4 ? [text] : [])];
  });
}

// Names at the right end of the lines, moved apart until none stands on another.
function endLabels(algorithms, ratios, up) {
  const labels = algorithms
    .map((algorithm, index) => ({ algorithm, y: up(ratios[index]) }))
    .sort((a, b) => b.y - a.y);
  labels.forEach((label, i) => {
    if (i > 0) label.y = Math.min(label.y, labels[i - 1].y - 15);
  });
  return labels.flatMap(({ algorithm, y }) => [
    mark(algorithm, BOX.right + 12, y, false),
    svg("text", { x: BOX.right + 22, y: y + 4 }, NAMES[algorithm].toLowerCase()),
  ]);
}

function mark(algorithm, x, y, measured) {
  const { colour, shape } = LOOKS[algorithm];
  const corners = {
    square: [[-4, -4], [4, -4], [4, 4], [-4, 4]],
    diamond: [[0, -6], [6, 0], [0, 6], [-6, 0]],
    triangle: [[0, -5.5], [5.5, 4.5], [-5.5, 4.5]],
  }[shape];
  const edge = measured ? { stroke: "var(--ink)", "stroke-width": 1.5, class: "race-measured" } : {};
  const look = { fill: colour, ...edge };
  if (!corners) return svg("circle", { cx: x, cy: y, r: 5, ...look });
  return svg("polygon", { points: corners.map(([dx, dy]) => [x + dx, y + dy]).join(" "), ...look });
}

const longer = (ratio) =>
  ratio < 1.2 ? `${number(100 * (ratio - 1), 2)} % longer` : `${number(ratio, 2)} times as long`;

/** Sentences on the race: who wins, by how much, and from which size on it is another. */
export function verdictOf(ranked, settings, bands) {
  const low = (algorithm) => NAMES[algorithm].toLowerCase();
  const winners = ranked.filter(({ place }) => place === 1);
  const best = ranked[0].us;
  const others = ranked.filter(({ place }) => place > 1);
  const names = winners.map((each) => low(each.algorithm)).join(" and ");
  const head = `${bytesText(settings.nbytes)} on ${settings.n} GPUs: ${names} `;
  const won = winners.length > 1 ? "arrive together" : ranked.length > 1 ? "wins" : "runs alone";
  const behind = others.map(({ algorithm, us }) => `${low(algorithm)} takes ${longer(us / best)}`);
  const by = bands.map(({ algorithms, to }) => {
    const who = algorithms.map(low).join(" or ");
    if (to < Infinity) return `${who} up to ${bytesText(to, 2)}`;
    return `${who} ${bands.length > 1 ? "above" : "at every size"}`;
  });
  return [`${head}${won}${behind.length ? "; " + behind.join(", ") : ""}.`, `The fastest: ${by.join(", then ")}.`];
}
