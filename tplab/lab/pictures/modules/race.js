// The all-reduce race: several algorithms on one clock, in simulated time. No kernel is asked for anything.

import { frame, holdsFocus, html, slider, dropdown, player, statusLine, number, timeText, bytesText } from "./common.js";
import { ALGORITHMS, NAMES, bandsOf, planOf, ranking } from "./race_plan.js";
import { raceLane, LANE_CSS, RANK_COLOURS } from "./race_lane.js";
import { raceCrossing, raceStrips, verdictOf, CHART_CSS } from "./race_charts.js";

const OWN_VALUES = "values of the sliders";
const RACE_CSS = `
.tplab-picture [hidden] { display: none; }
.race-verdict { font-size: 14px; margin: 8px 0 4px; }
.race-verdict p { margin: 0; }
.race-legend { display: flex; flex-wrap: wrap; gap: 2px 14px; color: var(--quiet); font-size: 12px; margin: 8px 0; }
.race-legend i { display: inline-block; width: 11px; height: 11px; margin-right: 5px; vertical-align: -1px; }
.race-who { border: 0; padding: 0; margin: 0; display: flex; flex-wrap: wrap; gap: 4px 14px; }
.race-who legend { float: left; padding: 0; margin-right: 4px; }
`;

export function render({ model, el }) {
  const root = frame(el, "All-reduce race", RACE_CSS + LANE_CSS + CHART_CSS);
  const lanes = new Map(ALGORITHMS.map((algorithm) => [algorithm, raceLane(algorithm)]));
  const verdict = html("div", { class: "race-verdict", role: "status", "aria-live": "polite" });
  const heard = statusLine();
  heard.element.className = "unseen";
  const legend = html("div", { class: "race-legend" });
  const grid = html("div", { class: "race-lanes" });
  const linkPlace = html("span");
  const uncover = html("button", { type: "button", onclick: () => change({ covered: false }) }, "Count bytes without predicting");
  const covered = html("div", { class: "row" }, uncover);
  let plans = [];
  let total = 1;
  let plansDrawn = false;

  const settings = () => ({
    ...{ n: model.get("num_ranks"), nbytes: model.get("nbytes") },
    ...{ alpha: model.get("alpha_us"), beta: model.get("beta_GBps"), ownLinks: model.get("own_links") },
  });
  const chosen = () => ALGORITHMS.filter((algorithm) => model.get("algorithms").includes(algorithm));
  const change = (values) => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  };
  const twoDigits = (value) => Number(value.toPrecision(2));

  const ranks = slider({ label: "GPUs", min: 2, max: 8, value: 4, onInput: (value) => change({ num_ranks: value }) });
  const size = slider({
    ...{ label: "size S", min: 2 ** 10, max: 2 ** 30, value: 2 ** 20, log: true, stops: 20, format: bytesText },
    onInput: (value) => change({ nbytes: Math.round(value) }),
  });
  const alpha = slider({
    ...{ label: "α, a message", min: 0.5, max: 5000, value: 1, log: true, stops: 80 },
    format: timeText,
    round: twoDigits,
    onInput: (value) => change({ alpha_us: value }),
  });
  const beta = slider({
    ...{ label: "β, bandwidth", min: 0.01, max: 1000, value: 100, log: true, stops: 100 },
    format: (value) => `${number(value)} GB/s`,
    round: twoDigits,
    onInput: (value) => change({ beta_GBps: value }),
  });
  const boxes = ALGORITHMS.map((algorithm) => {
    const toggle = () => {
      const on = boxes.filter(({ input }) => input.checked).map((box) => box.algorithm);
      change({ algorithms: on });
    };
    const input = html("input", { type: "checkbox", onchange: toggle });
    return { algorithm, input, element: html("label", {}, input, NAMES[algorithm]) };
  });
  const who = html("fieldset", { class: "race-who" }, html("legend", {}, "racers"), ...boxes.map((box) => box.element));

  const own = html("input", { type: "checkbox", onchange: () => change({ own_links: own.checked }) });
  const ownBox = html("label", {}, own, "a link of its own between every two GPUs");

  const strips = raceStrips((part) => {
    time.pause();
    time.seek(part * total);
  });
  const crossing = raceCrossing((nbytes) => {
    if (nbytes !== model.get("nbytes")) change({ nbytes });
  });
  const time = player({
    ...{ duration: 1, format: timeText, label: "race clock" },
    onTime: (t, playing) => {
      plans.forEach((plan) => lanes.get(plan.algorithm).draw(t));
      strips.draw(t / total);
      const words = plans.map(({ algorithm }) => `${NAMES[algorithm]}: ${lanes.get(algorithm).words()}`);
      if (!playing && plans.length) heard.say(words.join("; "));
    },
  });

  function linkChoice() {
    const links = model.get("links");
    const options = [...links.map(({ name }) => [name, name]), [OWN_VALUES, OWN_VALUES]];
    const { alpha: alphaNow, beta: betaNow } = settings();
    const now = links.find((link) => link.alpha_us === alphaNow && link.beta_GBps === betaNow);
    const choose = (name) => {
      const link = model.get("links").find((each) => each.name === name);
      if (link) change({ alpha_us: link.alpha_us, beta_GBps: link.beta_GBps });
    };
    const focused = holdsFocus(linkPlace);
    const menu = dropdown({ label: "link", options, value: now?.name ?? OWN_VALUES, onChange: choose });
    linkPlace.replaceChildren(menu.element);
    if (focused) menu.input.focus();
  }

  function drawLegend(n) {
    const colours = RANK_COLOURS.slice(0, n).map((colour, rank) =>
      html("span", {}, html("i", { style: `background:${colour}` }), `summand of GPU ${rank}`),
    );
    const direct = plans.some(({ algorithm }) => algorithm === "two-shot");
    legend.replaceChildren(
      html(
        "span", {},
        "In each GPU: a column is a chunk of the tensor, a cell a summand that is in it; ",
        "a bar below a column: the chunk is the whole sum.",
      ),
      ...colours,
      direct ? "Two-shot needs a way between every two GPUs, as a switch has; a ring needs neighbours only." : "",
    );
  }

  // The newest of what was measured on as many ranks, of as many bytes.
  const measuredBeside = ({ n, nbytes }, algorithm) =>
    model
      .get("measured")
      .findLast((each) => each.num_ranks === n && each.nbytes === nbytes && each.algorithm === algorithm);

  function update() {
    const now = settings();
    const racers = chosen();
    const ranked = ranking(racers, now);
    const part = total > 0 ? time.time() / total : 0;
    ranks.set(now.n);
    size.set(now.nbytes);
    alpha.set(now.alpha);
    beta.set(now.beta);
    boxes.forEach(({ algorithm, input }) => {
      input.checked = racers.includes(algorithm);
      input.disabled = input.checked && racers.length === 1; // somebody must run
    });
    own.checked = now.ownLinks;
    linkChoice();
    plans = racers.map((algorithm) => planOf(algorithm, now));
    total = Math.max(...plans.map(({ end }) => end));
    plans.forEach((plan) => {
      const { place } = ranked.find(({ algorithm }) => algorithm === plan.algorithm);
      const measured = measuredBeside(now, plan.algorithm);
      lanes.get(plan.algorithm).build(plan, now, { covered: model.get("covered"), place, measured });
    });
    grid.classList.toggle("four", racers.length === 4);
    grid.replaceChildren(...racers.map((algorithm) => lanes.get(algorithm).element));
    const bands = bandsOf(racers, now);
    const words = verdictOf(ranked, now, bands);
    if (verdict.textContent !== words.join("")) verdict.replaceChildren(...words.map((text) => html("p", {}, text)));
    strips.build(plans, total);
    crossing.build(racers, now, model.get("measured"), words.join(" "));
    drawLegend(now.n);
    covered.hidden = !model.get("covered");
    const stops = [...new Set(plans.flatMap(({ steps }) => steps.map(({ end }) => end)))].sort((a, b) => a - b);
    const fastest = Math.min(...plans.map(({ end }) => end));
    time.reset({ duration: total, stops, seconds: Math.min(14, Math.max(5, (1.6 * total) / fastest)) });
    time.seek((plansDrawn ? part : model.get("at")) * total);
    plansDrawn = true;
  }

  const read = ["num_ranks", "nbytes", "alpha_us", "beta_GBps"];
  read.push("algorithms", "own_links", "covered", "links", "measured");
  let waiting = 0;
  const soon = () => {
    waiting ||= requestAnimationFrame(() => {
      waiting = 0;
      update();
    });
  };
  read.forEach((name) => model.on(`change:${name}`, soon));
  root.append(
    html(
      "div", { class: "row" },
      html("span", { class: "badge" }, "MODEL"), linkPlace, alpha.element, beta.element, ownBox,
    ),
    html("div", { class: "row" }, size.element, ranks.element, who),
    time.element, verdict, html("div", { class: "race-room" }, grid), covered, legend,
    html("div", { class: "race-charts" }, strips.element, crossing.element),
    heard.element,
  );
  update();
  return () => {
    time.destroy();
    cancelAnimationFrame(waiting);
    read.forEach((name) => model.off(`change:${name}`, soon));
  };
}
