// Ranks as boxes, numbers that fly between them, Run, Stop and Kill. What is drawn is the scene that Python sends, or a
// recorded one; here is only where things stand and how numbers move from one scene to the next.

import { frame, html, number, player, put, reducedMotion, statusLine, svg, timeText } from "./common.js";

const FLIGHT_MS = 900;
const BOX = { height: 132, least: 104, most: 230, gap: 10 };
const HUB_HEIGHT = 84;

// State -> words, words for a narrow box, colour.
const STATES = {
  none: ["no process", "no process", "quiet"],
  starting: ["starting", "starting", "starting"],
  ready: ["alive, waiting", "waiting", "ready"],
  running: ["alive, talking", "talking", "running"],
  dead: ["dead", "dead", "dead"],
  ended: ["ended with it", "ended", "quiet"],
};

const STYLE = `
.two-ranks { max-width: 900px; }
.two-ranks .box { fill: var(--soft); stroke: var(--line); stroke-width: 1.5; }
.two-ranks .dead .box { fill: #B21405; stroke: #B21405; }
.two-ranks .dead text { fill: #FFFFFF; }
.two-ranks .gone .box { fill: none; stroke-dasharray: 5 4; }
.two-ranks .link { stroke: var(--quiet); stroke-width: 2.5; fill: none; }
.two-ranks .link.broken { stroke: #D9402F; stroke-dasharray: 3 6; }
.two-ranks svg .name { font-weight: 600; font-size: 14px; }
.two-ranks svg .small { font-size: 12px; fill: var(--quiet); }
.two-ranks svg .dead .small { fill: #FFFFFF; }
.two-ranks svg .held { font-size: 34px; font-weight: 700; }
.two-ranks svg .held.before { fill: var(--quiet); opacity: 0.7; }
.two-ranks svg .check { font-size: 15px; font-weight: 700; fill: var(--good); }
.two-ranks svg .check.wrong { fill: var(--bad); }
.two-ranks svg .time { font-size: 18px; font-weight: 700; }
.two-ranks svg .chip circle { fill: #B21405; }
.two-ranks svg .chip text { fill: #FFFFFF; font-weight: 700; font-size: 15px; }
.two-ranks svg .pill text { font-size: 11.5px; font-weight: 600; fill: #FFFFFF; }
.two-ranks .pill.quiet rect { fill: #5B6472; } .two-ranks .pill.ready rect { fill: #007E5D; }
.two-ranks .pill.running rect { fill: #0B3D84; } .two-ranks .pill.dead rect { fill: #7A0C02; }
.two-ranks .pill.starting rect { fill: #FFC813; } .two-ranks svg .pill.starting text { fill: #1F2430; }
.two-ranks .badge.live { background: #007E5D; } .two-ranks .badge.recorded { background: #0B3D84; }
.two-ranks button.run { background: #0B63CE; border-color: #0B63CE; color: white; font-weight: 600; }
.two-ranks button.kill { border-color: #D9402F; color: var(--bad); font-weight: 600; background: transparent; }
.two-ranks { --bad: light-dark(#C22A1A, #FF8A7D); --good: light-dark(#007E5D, #4FD1A5); }
.two-ranks .words { min-height: 62px; }
.two-ranks .card { border-left: 4px solid #B21405; background: var(--soft); padding: 7px 12px; }
.two-ranks .card summary { cursor: pointer; color: var(--quiet); }
.two-ranks .card pre { white-space: pre-wrap; font-size: 12px; margin: 4px 0 0; color: var(--ink); }
`;

/** Where `count` boxes, the hub of the link and the ends of its lines stand, on a picture so wide. Pure. */
export function arrange(count, width) {
  if (count <= 2) {
    const boxWidth = Math.min(BOX.most, (width - 2 - (count === 2 ? 84 : 0)) / Math.max(1, count));
    const xs = count === 2 ? [1, width - 1 - boxWidth] : [(width - boxWidth) / 2];
    const middle = 1 + BOX.height / 2;
    return {
      height: BOX.height + 2,
      hub: [width / 2, middle],
      boxes: xs.map((x) => ({ x, y: 1, width: boxWidth, end: [x === 1 ? x + boxWidth : x, middle] })),
    };
  }
  const most = Math.max(1, Math.floor((width - 2 + BOX.gap) / (BOX.least + BOX.gap)));
  const above = Math.ceil(count / 2);
  const columns = Math.min(most, above);
  const boxWidth = Math.min(BOX.most, (width - 2 - (columns - 1) * BOX.gap) / columns);
  const rows = (n) => Math.ceil(n / columns);
  const hubY = 1 + rows(above) * (BOX.height + BOX.gap) + HUB_HEIGHT / 2 - BOX.gap;
  const place = (index) => {
    const top = index < above;
    const at = top ? index : index - above;
    const inRow = Math.min(columns, (top ? above : count - above) - columns * Math.floor(at / columns));
    const x = (width - inRow * (boxWidth + BOX.gap) + BOX.gap) / 2 + (at % columns) * (boxWidth + BOX.gap);
    const row = Math.floor(at / columns);
    const y = top ? 1 + row * (BOX.height + BOX.gap) : hubY + HUB_HEIGHT / 2 + row * (BOX.height + BOX.gap);
    return { x, y, width: boxWidth, end: [x + boxWidth / 2, top ? y + BOX.height : y] };
  };
  const boxes = Array.from({ length: count }, (_, index) => place(index));
  return { height: Math.max(...boxes.map((box) => box.y)) + BOX.height + 1, hub: [width / 2, hubY], boxes };
}

const between = ([x, y], [u, v], share) => [x + (u - x) * share, y + (v - y) * share];
const smooth = (share) => share * share * (3 - 2 * share);

/** Where the numbers are, `share` of a flight after it began: `[x, y, text]`. Two cross; more meet at the hub. Pure. */
export function chips(ranks, places, share) {
  if (share <= 0 || share >= 1 || ranks.length < 2) return [];
  const { boxes, hub } = places;
  if (ranks.length === 2) {
    return ranks.map((rank, index) => {
      const [x, y] = between(boxes[index].end, boxes[1 - index].end, smooth(share));
      return [x, y + (index === 0 ? -13 : 13), rank.had];
    });
  }
  if (share < 0.5) return ranks.map((rank, index) => [...between(boxes[index].end, hub, smooth(2 * share)), rank.had]);
  return ranks.map((rank, index) => [...between(hub, boxes[index].end, smooth(2 * share - 1)), rank.got]);
}

/** The drawing of a scene, `share` of its flight after that began. */
function drawing() {
  const root = svg("svg", { role: "img" });
  const moving = svg("g", { "aria-hidden": "true" });
  let places = null;
  let scene = null;
  let values = [];

  function box(rank, { x, y, width }) {
    const [long, short, kind] = STATES[rank.state];
    const words = width < 130 ? short : long;
    const middle = x + width / 2;
    const gone = rank.state === "none" || rank.state === "ended";
    const alive = rank.state === "ready" || rank.state === "running";
    const value = svg("text", { class: "held", x: middle, y: y + 84, "text-anchor": "middle" });
    const check = svg("text", { x: middle + 22, y: y + 80 });
    values.push({ rank, value, check, alive });
    const pillWidth = words.length * 6.3 + 18;
    return svg("g", { class: rank.state === "dead" ? "dead" : gone ? "gone" : "" },
      svg("rect", { class: "box", x, y, width, height: BOX.height, rx: 10 }),
      svg("text", { class: "name", x: middle, y: y + 21, "text-anchor": "middle" }, `rank ${rank.index}`),
      svg("g", { class: `pill ${kind}` },
        svg("rect", { x: middle - pillWidth / 2, y: y + 28, width: pillWidth, height: 19, rx: 9.5 }),
        svg("text", { x: middle, y: y + 41.5, "text-anchor": "middle" }, words)),
      value, check,
      svg("text", { class: "small", x: middle, y: y + 107, "text-anchor": "middle" }, rank.pid ? `process ${rank.pid}` : ""),
      svg("text", { class: "small", x: middle, y: y + 123, "text-anchor": "middle" }, rank.pid ? rank.device : ""));
  }

  function link() {
    const broken = scene.ranks.some((rank) => rank.state === "dead" || rank.state === "ended");
    const { hub, boxes } = places;
    const lines = boxes.length === 2
      ? [svg("path", { class: `link${broken ? " broken" : ""}`, d: `M${boxes[0].end} L${boxes[1].end}` })]
      : boxes.length < 2 ? [] : boxes.map(({ end }) => svg("path", { class: `link${broken ? " broken" : ""}`, d: `M${end} L${hub}` }));
    const time = scene.median_us === null ? "" : timeText(scene.median_us);
    const words = broken ? "✕" : time;
    const below = boxes.length < 2 ? "" : scene.library;
    const paper = boxes.length > 2 ? [svg("rect", { x: hub[0] - 48, y: hub[1] - 24, width: 96, height: 48, rx: 8, style: "fill:var(--paper);stroke:var(--line)" })] : [];
    const shift = boxes.length > 2 ? -4 : -30;
    return [...lines, ...paper,
      svg("text", { class: "time", x: hub[0], y: hub[1] + shift, "text-anchor": "middle" }, boxes.length < 2 ? "" : words),
      svg("text", { class: "small", x: hub[0], y: hub[1] + (boxes.length > 2 ? 15 : 42), "text-anchor": "middle" }, below)];
  }

  function lay(next, width) {
    scene = next;
    places = arrange(scene.ranks.length, width);
    values = [];
    const words = scene.ranks.map((rank) => `rank ${rank.index}: ${STATES[rank.state][0]}${rank.got === null ? "" : `, holds ${number(rank.got, 6)}`}`);
    put(root, { viewBox: `0 0 ${width} ${places.height}`, "aria-label": words.join("; ") });
    root.replaceChildren(...link(), ...scene.ranks.map((rank, index) => box(rank, places.boxes[index])), moving);
    moving.replaceChildren();
  }

  function move(share) {
    const flying = chips(scene.ranks, places, scene.ranks.every((rank) => rank.state === "running" || rank.state === "ready") ? share : 1);
    while (moving.childElementCount > flying.length) moving.lastChild.remove();
    while (moving.childElementCount < flying.length) moving.append(svg("g", { class: "chip" }, svg("circle", { r: 15 }), svg("text", { y: 5, "text-anchor": "middle" })));
    flying.forEach(([x, y, value], index) => {
      const chip = moving.children[index];
      put(chip, { transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` });
      if (chip.lastChild.textContent !== String(value)) chip.lastChild.textContent = String(value);
    });
    for (const { rank, value, check, alive } of values) {
      const after = share >= 1 && rank.got !== null;
      const before = alive && !after && !scene.busy && rank.last !== null; // what the process held that this one replaces
      const shown = after ? rank.got : before ? rank.last : rank.had;
      const text = alive ? number(shown, 6) : rank.state === "dead" ? "✕" : "";
      if (value.textContent !== text) value.textContent = text;
      put(value, { class: before ? "held before" : "held" });
      const mark = !alive ? "" : before ? "last run" : !after ? "" : rank.correct ? "✓" : "✗ wrong";
      if (check.textContent !== mark) check.textContent = mark;
      put(check, { class: before ? "small" : rank.correct ? "check" : "check wrong" });
    }
  }
  return { element: root, lay, move };
}

/** The card of a fault: what happened, when it was noticed, what follows, and the ranks' own words folded. */
function faultCard(card) {
  const noticed = card.noticed_ms === null ? null : html("b", {}, ` Noticed ${timeText(card.noticed_ms * 1000, 2)} after the kill.`);
  const details = card.details ? html("details", {}, html("summary", {}, "What the ranks said"), html("pre", {}, card.details)) : null;
  return html("div", { class: "card", role: "alert" }, html("b", {}, card.title), noticed, html("div", {}, card.text), details);
}

export function render({ model, el }) {
  const root = frame(el, "Two ranks talking", STYLE);
  root.classList.add("two-ranks");
  const picture = drawing();
  const live = model.get("live");
  const recording = model.get("recording");
  const send = (content) => model.send(content);
  const run = html("button", { type: "button", class: "run", onclick: () => send({ press: "run" }) }, "▶ Run");
  const stop = html("button", { type: "button", onclick: () => send({ press: "stop" }) }, "■ Stop");
  const again = html("input", { type: "checkbox", onchange: () => { model.set("until_stop", again.checked); model.save_changes(); } });
  const kills = html("span", { class: "row", style: "margin:0;gap:6px", role: "group", "aria-label": "kill a rank" });
  const source = html("div", { class: "row", style: "gap:8px;min-height:22px" });
  const status = statusLine();
  const words = html("div", { class: "words" });
  let scene = model.get("scene");
  let shown = null; // what the words below are made of
  let flown = scene.flight; // the last flight whose numbers have arrived, or are under way
  let began = -Infinity;
  let request = 0;
  let width = 0;

  function talk() {
    const times = scene.count > 1000 ? "the last 1,000" : scene.count;
    const count = scene.count ? `an all-reduce of one number takes ${timeText(scene.median_us)}: median of ${times}, each on its slowest rank` : "";
    const kind = scene.badge.startsWith("RECORDED") ? "recorded" : "live";
    source.replaceChildren(...(scene.badge ? [html("span", { class: `badge ${kind}` }, scene.badge)] : []), html("span", {}, count));
    status.say(scene.status);
    const card = JSON.stringify(scene.card);
    if (card !== shown) words.replaceChildren(...(scene.card === null ? [] : [faultCard(scene.card)]), status.element);
    shown = card;
    const killable = ["starting", "ready", "running"].includes(scene.phase) && !scene.ranks.some((rank) => rank.state === "dead");
    if (kills.childElementCount !== scene.ranks.length) {
      const few = scene.ranks.length <= 4;
      kills.replaceChildren(...scene.ranks.map(({ index }) => html("button", {
        type: "button", class: "kill", "aria-label": `Kill rank ${index}`, onclick: () => send({ press: "kill", rank: index }),
      }, few ? `Kill rank ${index}` : `✕ ${index}`)));
    }
    const had = root.getRootNode().activeElement; // a button that is disabled gives the focus to the one that is next
    for (const button of kills.children) button.disabled = !killable;
    run.disabled = scene.busy;
    stop.disabled = !scene.busy;
    if (had?.disabled && root.contains(had)) (scene.busy ? stop : run).focus();
  }
  const share = () => Math.min(1, (performance.now() - began) / FLIGHT_MS);
  function tick() {
    request = 0;
    picture.move(share());
    if (share() < 1) request = requestAnimationFrame(tick);
  }
  function show(at = null) {
    if (!width) return;
    picture.lay(scene, width);
    picture.move(at ?? share());
    talk();
    if (at === null && share() < 1 && !request) request = requestAnimationFrame(tick);
  }
  function changed() {
    scene = model.get("scene");
    if (scene.flight !== flown && !reducedMotion()) began = performance.now();
    flown = scene.flight;
    show();
  }
  const observer = new ResizeObserver(([entry]) => {
    const now = Math.max(240, Math.round(entry.contentRect.width));
    if (now === width) return;
    width = now;
    if (time) time.seek(time.time());
    else show();
  });

  let time = null;
  if (live) {
    root.append(picture.element, source,
      html("div", { class: "row" }, run, stop, html("label", {}, again, "again and again, until Stop"), kills), words);
    again.checked = model.get("until_stop");
    model.on("change:scene", changed);
  } else if (recording.length === 1) {
    root.append(picture.element, source, words);
  } else {
    const flights = new Map(recording.map(([at, { flight }]) => [flight, at]).reverse());
    const end = recording.at(-1)[0];
    const replay = (t) => {
      scene = (recording.findLast(([at]) => at <= t) ?? recording[0])[1];
      show(scene.flight ? Math.min(1, ((t - flights.get(scene.flight)) * 1000) / FLIGHT_MS) : 1);
    };
    time = player({ duration: end, seconds: end, format: (t) => `${number(t, 2)} s`, onTime: replay, label: "recording", autoplay: true });
    root.append(picture.element, source, time.element, words);
    // For who records it; a notebook has no such trait.
    model.on("change:at", () => time.seek(model.get("at")));
  }
  observer.observe(root);
  return () => {
    cancelAnimationFrame(request);
    observer.disconnect();
    time?.destroy();
    model.off("change:scene", changed);
  };
}
