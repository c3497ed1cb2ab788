// What the play head and the schedule editor draw alike: colours of actions, the time axis, a width that follows its place.

import { COLOURS, number, svg } from "./common.js";

const LIGHTER = { [COLOURS.forward]: COLOURS.decode, [COLOURS.backward]: "#FFE79A", [COLOURS.weightGradient]: "#7FC4AE" };

export const WORDS = { F: "forward", B: "backward", I: "backward (input)", W: "backward (weights)" };

/** Colour of an action; chunks of a rank go from the kind's own towards a lighter one, as in the lab's Gantt charts. */
export function fillOf(op, chunk = 0, chunks = 1, decodes = false) {
  const own = op === "F" ? (decodes ? COLOURS.decode : COLOURS.forward) : op === "W" ? COLOURS.weightGradient : COLOURS.backward;
  if (chunks < 2 || !(own in LIGHTER)) return own;
  const part = chunk / (chunks - 1);
  const mixed = [1, 3, 5].map((at) => {
    const [near, far] = [own, LIGHTER[own]].map((colour) => parseInt(colour.slice(at, at + 2), 16));
    return Math.round(near + (far - near) * part).toString(16).padStart(2, "0");
  });
  return `#${mixed.join("")}`;
}

/** The colour as a style that is seen on a dark page, too. (Attributes `fill` are, by the rule in common.js.) */
export const onPage = (colour) => (colour === COLOURS.forward ? "var(--forward)" : colour);

/** White or ink, whichever is read more easily on a `#rrggbb`. */
export function inkOn(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue < 140 ? "#FFFFFF" : "#1F2430";
}

/** Label of an action that has so many pixels: `F3`, or `3`, or nothing. */
export function labelOf({ op, micro }, px) {
  const digits = String(micro);
  const room = (px - 2) / 6.5;
  return room >= digits.length + 1 ? op + digits : room >= digits.length ? digits : "";
}

/** Ticks of a time axis `end` long and `px` wide: a line and a number each, at round times at least 56 px apart. */
export function axis(end, px, x, top, bottom, unit) {
  const least = (end * 56) / Math.max(px, 1);
  const power = 10 ** Math.floor(Math.log10(least || 1));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= least) ?? power;
  const group = svg("g", { class: "axis", "aria-hidden": "true" });
  for (let index = 0; index * step <= end * (1 + 1e-9); index++) {
    const time = index * step;
    const anchor = !index ? "start" : x(time) + 18 > x(end) ? "end" : "middle";
    const text = svg("text", { x: x(time), y: bottom + 14, "text-anchor": anchor }, number(time, 4));
    group.append(svg("line", { x1: x(time), x2: x(time), y1: top, y2: bottom }), text);
  }
  group.append(svg("text", { x: x(end), y: bottom + 28, "text-anchor": "end" }, unit));
  return group;
}

/** Call `draw(width)` now and whenever the place has another width; returns what ends that. */
export function followWidth(element, draw) {
  let last = 0;
  const look = () => {
    const width = Math.max(280, Math.round(element.clientWidth));
    if (width !== last) draw((last = width));
  };
  const observer = new ResizeObserver(look);
  observer.observe(element);
  look();
  return () => observer.disconnect();
}
