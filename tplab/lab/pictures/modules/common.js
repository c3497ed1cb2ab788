// What all pictures share: elements, colours, style, a player, controls, a line that screen readers hear, units.

export const COLOURS = {
  forward: "#0B3D84",
  decode: "#74C1FB",
  backward: "#FFC813",
  weightGradient: "#007E5D",
  collective: "#B21405",
  pointToPoint: "#C7719E",
  idle: "#E9EBEE",
};

// Colours follow the page's `color-scheme`: that of the system on a page of its own, of the reader's switch on a web
// site. Notebooks say their theme by attributes only.
const DARK = [
  '[data-jp-theme-light="false"]', // JupyterLab
  '[data-vscode-theme-kind$="dark"]', '[data-vscode-theme-kind="vscode-high-contrast"]', // the light one ends with -light
  '[theme="dark"]', // Colab
];
const CSS = `
[data-jp-theme-light="true"] .tplab-picture { color-scheme: light; }
:is(${DARK}) .tplab-picture { color-scheme: dark; }
.tplab-picture {
  --ink: var(--jp-ui-font-color1, light-dark(#1F2430, #E6E9EE));
  --quiet: var(--jp-ui-font-color2, light-dark(#5B6472, #A3ACB9));
  --paper: var(--jp-layout-color1, light-dark(#FFFFFF, #16191F));
  --line: var(--jp-border-color1, light-dark(#CBD0D8, #4A5262));
  --soft: var(--jp-layout-color2, light-dark(#F2F4F7, #232832));
  --accent: var(--jp-brand-color1, light-dark(#0B63CE, #6AB0FF));
  --forward: light-dark(${COLOURS.forward}, color-mix(in srgb, white 30%, ${COLOURS.forward}));
  color: var(--ink); font: 13px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
  box-sizing: border-box; max-width: 100%;
}
.tplab-picture [fill="${COLOURS.forward}" i] { fill: var(--forward); }
.tplab-picture *, .tplab-picture *::before { box-sizing: border-box; }
.tplab-picture svg { display: block; width: 100%; height: auto; }
.tplab-picture svg text { fill: var(--ink); font: inherit; }
.tplab-picture .row { display: flex; flex-wrap: wrap; gap: 6px 16px; align-items: center; margin: 6px 0; }
.tplab-picture label { display: inline-flex; gap: 8px; align-items: center; }
.tplab-picture input[type="range"] { width: 140px; accent-color: var(--accent); }
.tplab-picture .value { min-width: 5.5em; font-variant-numeric: tabular-nums; }
.tplab-picture button, .tplab-picture select {
  font: inherit; color: var(--ink); background: var(--soft); border: 1px solid var(--line); border-radius: 4px;
  padding: 3px 10px; min-height: 28px; cursor: pointer;
}
.tplab-picture button:disabled { opacity: 0.5; cursor: default; }
.tplab-picture :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.tplab-picture .status { color: var(--quiet); min-height: 1.45em; }
.tplab-picture .badge {
  display: inline-block; background: #5B6472; color: white; border-radius: 3px; padding: 1px 6px; font-size: 11px;
  font-weight: 600;
}
.tplab-picture .unseen {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
`;

/** An element with attributes (a function is a listener: `onclick`), and children (elements or texts). */
function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function svg(tag, attributes, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

export function html(tag, attributes, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** Set attributes that differ: a frame touches the page only where something moved. */
export function put(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    const text = String(value);
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  }
}

/** The root of a picture in `el`: styled, named for screen readers. `style`: more CSS. */
export function frame(el, label, style = "") {
  // A notebook's pictures share one document, as do all notebooks of JupyterLab: each one's own style is for it alone.
  const own = `picture-${label.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;
  const root = html("div", { class: `tplab-picture ${own}`, role: "group", "aria-label": label });
  root.append(html("style", {}, CSS + style.replaceAll(".tplab-picture", `.tplab-picture.${own}`)));
  el.replaceChildren(root);
  return root;
}

/** Whether what has the focus is in `element`, which may stand in a shadow tree, as on a web site. */
export const holdsFocus = (element) => element.contains(element.getRootNode().activeElement);

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A line of words that is read out when it changes; `say` the same text twice, and it is said once. */
export function statusLine() {
  const element = html("div", { class: "status", role: "status", "aria-live": "polite" });
  const say = (text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  return { element, say };
}

/**
 * A labelled slider. `log: true`: min, max and value are on a log scale of `stops` positions; `round`: of what it gives.
 * Returns `{ element, input, value(), set(value) }`; `onInput(value)` while it moves.
 */
export function slider({
  label, min, max, value, step = 1, log = false, stops = 120, round = (v) => v, format = number, onInput,
}) {
  const position = (v) => (log ? (stops * Math.log(Math.max(v, min) / min)) / Math.log(max / min) : v); // 0 has no log
  const at = (p) => round(log ? min * (max / min) ** (p / stops) : p);
  const input = html("input", {
    type: "range", min: log ? 0 : min, max: log ? stops : max, step: log ? 1 : step, "aria-label": label,
  });
  const shown = html("span", { class: "value", "aria-hidden": "true" });
  let now = value;
  const show = () => {
    shown.textContent = format(now);
    input.setAttribute("aria-valuetext", format(now));
  };
  const set = (v) => {
    now = v;
    input.value = position(v);
    show();
  };
  input.addEventListener("input", () => {
    now = at(Number(input.value));
    show();
    onInput?.(now);
  });
  set(value);
  return { element: html("label", {}, html("span", {}, label), input, shown), input, value: () => now, set };
}

/** A labelled drop-down of `[text, value]` pairs. Returns `{ element, input, value(), set(value) }`. */
export function dropdown({ label, options, value, onChange }) {
  const input = html("select", { "aria-label": label });
  options.forEach(([text], index) => input.append(html("option", { value: index }, text)));
  const set = (wanted) => {
    input.value = options.findIndex(([, each]) => each === wanted);
  };
  const now = () => options[input.value][1];
  input.addEventListener("change", () => onChange?.(now()));
  set(value);
  return { element: html("label", {}, html("span", {}, label), input), input, value: now, set };
}

/**
 * Time that runs: buttons, a scrub bar, the keyboard (Space, arrows from stop to stop, Home, End), one frame at a time.
 *
 * `duration`: in the picture's own unit of time; `seconds`: how long it plays at speed 1. `onTime(t, playing)` draws.
 * `stops`: times worth stopping at (default: tenths). Where less motion is wished for, it goes from stop to stop.
 * Returns `{ element, play, pause, seek, reset({ duration, stops, seconds }), time(), playing(), destroy }`.
 */
export function player({ duration, seconds = 6, stops = null, format = number, onTime, label = "time", autoplay = false }) {
  let total = duration;
  let length = seconds;
  let marks = stops;
  let now = 0;
  let speed = 1;
  let request = 0;
  let timer = 0;
  const bar = html("input", { type: "range", min: 0, max: 1000, step: 1, value: 0, "aria-label": label, style: "flex:1;min-width:120px" });
  const shown = html("span", { class: "value", "aria-hidden": "true" });
  const button = html("button", { type: "button", onclick: () => (running() ? pause() : play()) });
  const back = html("button", { type: "button", "aria-label": "step back", onclick: () => jump(-1) }, "|◀");
  const on = html("button", { type: "button", "aria-label": "step forward", onclick: () => jump(1) }, "▶|");
  const pace = dropdown({
    label: "speed", value: 1, options: [["¼ ×", 0.25], ["½ ×", 0.5], ["1 ×", 1], ["2 ×", 2], ["4 ×", 4]],
    onChange: (value) => { speed = value; },
  });
  const element = html("div", { class: "row player", role: "group", "aria-label": `${label}: play and scrub` }, back, button, on, bar, shown, pace.element);
  const running = () => request !== 0 || timer !== 0;
  const places = () => marks ?? Array.from({ length: 11 }, (_, index) => (total * index) / 10);

  function show() {
    bar.value = total > 0 ? (1000 * now) / total : 0;
    shown.textContent = format(now);
    bar.setAttribute("aria-valuetext", format(now));
    button.textContent = running() ? "❚❚ Pause" : "▶ Play";
    onTime(now, running());
  }
  function seek(time) {
    now = Math.min(Math.max(time, 0), total);
    show();
  }
  function jump(direction) {
    pause();
    const near = total * 1e-6;
    const next = direction > 0 ? places().find((t) => t > now + near) : places().findLast((t) => t < now - near);
    seek(next ?? (direction > 0 ? total : 0));
  }
  function play() {
    if (running()) return;
    if (now >= total) now = 0;
    if (reducedMotion()) {
      timer = setInterval(() => {
        const next = places().find((t) => t > now + total * 1e-6);
        now = next ?? total;
        if (now >= total) pause();
        else show();
      }, 900 / speed);
      show();
      return;
    }
    let before = null;
    const tick = (stamp) => {
      if (before !== null) now += ((stamp - before) / 1000) * speed * (total / length);
      before = stamp;
      request = now < total ? requestAnimationFrame(tick) : 0;
      now = Math.min(now, total);
      show();
    };
    request = requestAnimationFrame(tick);
    show();
  }
  function pause() {
    cancelAnimationFrame(request);
    clearInterval(timer);
    request = timer = 0;
    show();
  }
  function reset(changes) {
    total = changes.duration ?? total;
    length = changes.seconds ?? length;
    marks = changes.stops ?? marks;
    now = Math.min(now, total);
    show();
  }
  bar.addEventListener("input", () => {
    const time = (total * Number(bar.value)) / 1000; // `pause` puts the bar back to where the picture is
    pause();
    seek(time);
  });
  bar.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: () => jump(1), ArrowLeft: () => jump(-1), Home: () => seek(0), End: () => seek(total), " ": () => (running() ? pause() : play()) };
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab's own shortcuts listen, too
    moves[event.key]();
  });
  show();
  if (autoplay && !reducedMotion()) play();
  const destroy = () => {
    cancelAnimationFrame(request);
    clearInterval(timer);
  };
  return { element, play, pause, seek, reset, time: () => now, playing: running, destroy };
}

/** The model of an anywidget, for a page without a kernel. */
export function localModel(state) {
  const values = { ...state };
  const listeners = {};
  return {
    get: (name) => values[name],
    set(name, value) {
      values[name] = value;
      for (const listener of listeners[`change:${name}`] ?? []) listener();
    },
    save_changes() {},
    send() {},
    on(event, listener) {
      (listeners[event] ??= new Set()).add(listener);
    },
    off(event, listener) {
      listeners[event]?.delete(listener);
    },
  };
}

/** So many significant digits, all of those before the point, no exponent: `1,260`, `12.3`, `0.0123` (as `shown.py`). */
export function number(value, digits = 3) {
  if (!Number.isFinite(value)) return value === Infinity ? "∞" : value === -Infinity ? "-∞" : "not a number";
  if (value === 0) return "0";
  const decimals = Math.max(0, digits - 1 - Number(value.toExponential(digits - 1).split("e")[1]));
  return value.toLocaleString("en-US", { maximumFractionDigits: decimals });
}

/** Microseconds in the unit that suits them: `14.2 µs`, `1.26 ms`, `3 s`. */
export function timeText(us, digits = 3) {
  const [value, unit] = scaled(us, digits, [[1, "µs"], [1e3, "ms"], [1e6, "s"]]);
  return `${number(value, digits)} ${unit}`;
}

/** `512 B`, `64 KiB`, `1.5 MiB`. */
export function bytesText(bytes, digits = 3) {
  const units = [[1, "B"], [2 ** 10, "KiB"], [2 ** 20, "MiB"], [2 ** 30, "GiB"], [2 ** 40, "TiB"]];
  const [value, unit] = scaled(bytes, digits, units);
  return `${number(value, digits)} ${unit}`;
}

/** The largest unit in which the rounded value is at least 1, and the value in it. */
function scaled(value, digits, units) {
  const rounded = (size) => Number((Math.abs(value) / size).toPrecision(digits));
  const [size, unit] = units.findLast(([each]) => rounded(each) >= 1) ?? units[0];
  return [value / size, unit];
}
