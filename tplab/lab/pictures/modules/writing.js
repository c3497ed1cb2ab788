// Layouts that write the same text: columns of tokens on one clock, equal ones lit, and below each what its ranks did.

import { COLOURS, frame, html, player, reducedMotion, statusLine, svg, timeText } from "./common.js";

const KINDS = [
  { name: "compute", words: "computing", colour: COLOURS.decode, from: 0, height: 14 },
  { name: "wait", words: "waiting for another stage", colour: "var(--line)", from: 4, height: 6 },
  { name: "collective", words: "in a collective", colour: COLOURS.collective, from: 7, height: 7 },
];
const WIDE = 1000; // units of a lane's drawing; it is as wide as its column

const STYLE = `
.tplab-writing .columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 205px), 1fr)); gap: 12px; }
.tplab-writing section { border: 1px solid var(--line); border-radius: 6px; padding: 8px 12px; background: var(--paper); min-width: 0; }
.tplab-writing h4 { font-size: 14px; margin: 0; }
.tplab-writing .quiet { color: var(--quiet); font-size: 12px; }
.tplab-writing p.text { font-family: Georgia, "Times New Roman", serif; font-size: 15px; line-height: 1.6; margin: 6px 0; min-height: 6.4em; white-space: pre-wrap; overflow-wrap: anywhere; }
.tplab-writing .prompt { color: var(--quiet); }
.tplab-writing .token { visibility: hidden; }
.tplab-writing .token.shown { visibility: visible; }
.tplab-writing .token.same { background: color-mix(in srgb, var(--accent) 16%, transparent); border-bottom: 2px solid var(--accent); }
.tplab-writing .token.first { outline: 2px dashed #D0341F; outline-offset: 1px; }
.tplab-writing .token.newest { background: var(--accent); color: var(--paper); }
.tplab-writing .lane { display: flex; align-items: center; gap: 8px; margin: 2px 0; }
.tplab-writing .lane span { flex: 0 0 48px; }
.tplab-writing .track { flex: 1 1 0; min-width: 0; position: relative; overflow: hidden; border-bottom: 1px solid var(--line); }
.tplab-writing .track svg { height: 16px; }
.tplab-writing .head { position: absolute; inset: 0; border-left: 2px solid var(--ink); will-change: transform; }
.tplab-writing > .status { font-size: 14px; font-weight: 600; color: var(--ink); margin-bottom: 6px; }
.tplab-writing .key { display: inline-block; width: 14px; height: 10px; border: 1px solid var(--line); }
.tplab-writing .legend > span { display: inline-flex; gap: 6px; align-items: center; }
`;

/** Where two lists of tokens part; their common length if they do not. */
function parting(one, other) {
  const both = Math.min(one.length, other.length);
  for (let place = 0; place < both; place++) if (one[place] !== other[place]) return place;
  return both;
}

function lane({ name, spans }, total) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} 16`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const { name: kind, colour, from, height } of KINDS) {
    const drawn = (spans[kind] ?? []).map(([start, end]) => {
      const x = (WIDE * start) / total;
      return `M${x.toFixed(2)} ${from + 1}h${Math.max((WIDE * end) / total - x, 0.3).toFixed(2)}v${height}H${x.toFixed(2)}z`;
    });
    picture.append(svg("path", { d: drawn.join(""), fill: colour }));
  }
  // Not in the drawing, which would be painted anew in every frame.
  const head = html("i", { class: "head" });
  const track = html("div", { class: "track" }, picture, head);
  return { head, element: html("div", { class: "lane" }, html("span", { class: "quiet" }, name), track) };
}

function column(data, first, prompt, total) {
  const same = parting(first.tokens, data.tokens);
  const parts = same < Math.min(first.tokens.length, data.tokens.length);
  const tokens = data.tokens.map((text, place) => {
    const kind = place < same ? " same" : place === same && parts ? " first" : "";
    const hint = place === same && parts ? html("span", { class: "unseen" }, " (first difference) ") : null;
    return html("span", { class: `token shown${kind}` }, hint, text.replace("\n", "¶"));
  });
  const lanes = data.at ? data.lanes.map((each) => lane(each, total)) : [];
  const element = html(
    "section",
    { "aria-label": data.name },
    html("h4", {}, data.name),
    html("div", { class: "quiet" }, data.how),
    html("p", { class: "text" }, html("span", { class: "prompt" }, prompt), ...tokens),
    ...lanes.map((each) => each.element),
    html("div", { class: "quiet" }, data.note),
  );
  let shown = tokens.length;
  /** Only what changes between two frames is touched. */
  function at(t, playing) {
    const now = data.at ? data.at.filter((known) => known <= t).length : tokens.length;
    tokens[shown - 1]?.classList.remove("newest");
    for (let place = Math.min(now, shown); place < Math.max(now, shown); place++) {
      tokens[place].classList.toggle("shown", place < now);
    }
    shown = now;
    if (playing && now < tokens.length) tokens[now - 1]?.classList.add("newest");
    for (const { head } of lanes) head.style.transform = `translateX(${(100 * t) / total}%)`;
  }
  return { element, at };
}

export function render({ model, el }) {
  const root = frame(el, "Layouts that write the same text", STYLE);
  root.classList.add("tplab-writing");
  const said = statusLine();
  const place = html("div", { class: "columns" });
  const pace = html("span", { class: "quiet" });
  let columns = [];
  const clock = player({
    duration: 1, seconds: 8, label: "time", format: (ms) => timeText(1000 * ms),
    onTime: (t, playing) => columns.forEach((each) => each.at(t, playing)),
  });
  const legend = html(
    "div",
    { class: "row legend quiet" },
    html("span", {}, html("span", { class: "token shown same" }, " token "), "as in the first layout"),
    html("span", {}, html("span", { class: "token shown first" }, " token "), "first difference"),
    html("span", {}, "¶ end of a paragraph: the model stops"),
    ...KINDS.map(({ words, colour }) => html("span", {}, html("span", { class: "key", style: `background:${colour}` }), words)),
  );
  root.append(said.element, place, clock.element, html("div", { class: "row" }, pace), legend);
  let complete = false;

  function draw() {
    const data = model.get("columns");
    const was = complete;
    complete = data.length > 0 && data.every((each) => each.at);
    const total = Math.max(...data.map((each) => each.total ?? 0), 0.001);
    columns = data.map((each) => column(each, data[0], model.get("prompt"), total));
    place.replaceChildren(...columns.map((each) => each.element));
    for (const part of [clock.element, pace]) part.style.display = complete ? "" : "none";
    legend.style.display = data.length > 0 ? "" : "none";
    if (!complete) return;
    const last = data.reduce((slow, each) => (each.total > slow.total ? each : slow));
    const seconds = Math.max(6, total / 1000);
    const times = Math.round((1000 * seconds) / total);
    const played = times > 1 ? `played ${times.toLocaleString("en-US")} times slower than they wrote` : "as fast as they wrote";
    pace.textContent = `All layouts on one clock, ${played}. They wrote one after the other.`;
    clock.reset({ duration: total, seconds, stops: [...last.at, total] });
    clock.seek(total);
    if (drawn && !was && !reducedMotion()) clock.play();
  }
  let drawn = false;
  const say = () => said.say(model.get("verdict"));
  draw();
  say();
  drawn = true;
  model.on("change:columns", draw);
  model.on("change:verdict", say);
  return () => {
    clock.destroy();
    model.off("change:columns", draw);
    model.off("change:verdict", say);
  };
}
