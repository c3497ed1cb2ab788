// The shard painter: click a matrix, and see what its cut does to the activations and which collectives it forces. Also
// a game: of the paintings that cut all four matrices, find the one that costs the least.

import { blockScene, BLOCK_CSS } from "./block.js";
import { bytesText, dropdown, frame, html, number, player, put, reducedMotion, slider, statusLine, timeText } from "./common.js";
import { cheapest, CHOICES, MATRICES, paintings, planBlock, timeUs } from "./plan.js";

const PAINTER_CSS = `
.tplab-picture .painter { display: flex; flex-wrap: wrap; gap: 12px 28px; align-items: flex-start; }
.tplab-picture .painting { flex: 1 1 600px; min-width: 0; }
.tplab-picture .beside { flex: 1 1 300px; min-width: 0; max-width: 620px; }
.tplab-picture .question { border-left: 4px solid var(--accent); background: var(--soft); padding: 6px 12px; margin: 6px 0; }
.tplab-picture .wrong { border-left: 4px solid #B21405; background: var(--soft); padding: 6px 12px; margin: 6px 0; }
.tplab-picture .pale { opacity: 0.35; }
.tplab-picture table { border-collapse: collapse; width: 100%; margin: 8px 0; }
.tplab-picture th, .tplab-picture td {
  text-align: left; vertical-align: top; padding: 3px 10px 3px 0; border-bottom: 1px solid var(--line); font-weight: 400;
}
.tplab-picture thead th { font-weight: 600; }
.tplab-picture h4 { margin: 10px 0 4px; font-size: 13px; }
.tplab-picture .why { margin: 0; padding-left: 0; list-style: none; }
.tplab-picture .why li { margin: 6px 0; }
.tplab-picture .kind {
  background: #B21405; color: white; border-radius: 9px; padding: 0 8px; font-size: 12px; font-weight: 600;
  white-space: nowrap;
}
.tplab-picture .board { display: grid; grid-template-columns: repeat(9, 1fr); gap: 3px; max-width: 190px; }
.tplab-picture .board i { aspect-ratio: 1; border-radius: 2px; border: 1px solid var(--line); }
.tplab-picture .board i.cut { border-color: var(--quiet); }
.tplab-picture .board i.tried { background: var(--accent); cursor: pointer; }
.tplab-picture .board i.here { outline: 2px solid var(--ink); outline-offset: 1px; }
.tplab-picture .board i.best { background: #007E5D; }
.tplab-picture .found { border-left-color: #007E5D; }
`;
const ALL = paintings();
const KEYS = ALL.map((choices) => keyOf(choices));
const STATION_S = 0.22; // what the pass takes from one station to the next

export function render({ model, el }) {
  const root = frame(el, "Shard painter", PAINTER_CSS + BLOCK_CSS);
  const status = statusLine();
  const [question, wrong, goal, table, reasons, note] = Array.from({ length: 6 }, () => html("div", {}));
  const board = html("div", { class: "board", role: "img" });
  const cells = ALL.map((choices) => html("i", { onclick: () => back(choices), "aria-hidden": "true" }));
  board.append(...cells);
  const scene = blockScene({ onTurn: turn });
  const pass = player({ duration: 1, onTime: (t) => scene.at(t), format: passText, label: "pass" });
  const shapes = model.get("shapes");
  const links = model.get("links");
  const set = (name) => (value) => share({ [name]: value });
  const controls = {
    ranks: slider({ label: "ranks", min: 1, max: 8, value: 1, format: String, onInput: set("ranks") }),
    tokens: slider({ label: "tokens", min: 0, max: 13, value: 0, format: (power) => number(2 ** power, 4), onInput: (power) => share({ tokens: 2 ** power }) }),
    model: dropdown({ label: "model", options: Object.keys(shapes).map((each) => [each, each]), onChange: set("model") }),
    link: dropdown({ label: "link", options: Object.keys(links).map((each) => [each, each]), onChange: set("link") }),
  };
  const legend = html("div", { class: "status" }, "A square is a painting; those with a stronger edge cut all four matrices. Click one that you tried to see it again.");
  const picture = html("div", { class: "painting" });
  picture.append(scene.element, pass.element);
  const beside = html("div", { class: "beside" }, goal, board, legend, table, note, reasons);
  const row = html("div", { class: "row" }, html("span", { class: "badge" }, "MODEL"), ...Object.values(controls).map((each) => each.element));
  const hint = html("div", {}, "Click a matrix, or press Enter on it, to turn it: by column, by row, the same on every rank. Colours are ranks.");
  root.append(row, question, wrong, hint, status.element, html("div", { class: "painter" }, picture, beside));
  let [plan, width, drawnFor] = [null, 0, ""];

  function share(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  function turn(name, direction) {
    if (model.get("question")) return status.say("Predict first: then the matrices can be painted.");
    const choices = [...model.get("choices")];
    const at = MATRICES.indexOf(name);
    choices[at] = CHOICES[(CHOICES.indexOf(choices[at]) + direction + CHOICES.length) % CHOICES.length];
    share({ choices });
  }

  function back(choices) {
    if (!model.get("question") && model.get("tried").includes(keyOf(choices))) share({ choices });
  }

  function sizes() {
    return { ...shapes[model.get("model")], tokens: model.get("tokens"), itemsize: 2, n: model.get("ranks") };
  }

  // The whole picture from the model's state: whoever changed it, a click here, a cell in Python or another view.
  function show() {
    controls.ranks.set(model.get("ranks"));
    controls.tokens.set(Math.log2(model.get("tokens")));
    controls.model.set(model.get("model"));
    controls.link.set(model.get("link"));
    asked();
    try {
      plan = planBlock(model.get("choices"), sizes());
    } catch (error) {
      wrong.className = "wrong";
      wrong.textContent = `${error.message}${plan ? " Below is the last painting that works." : ""}`;
      put(picture, { class: "painting pale" });
      return;
    }
    wrong.className = wrong.textContent = "";
    put(picture, { class: model.get("question") ? "painting locked" : "painting" });
    const tried = model.get("tried");
    const key = keyOf(plan.choices);
    if (!tried.includes(key)) share({ tried: [...tried, key] }); // and show() is called again
    draw();
    tell();
  }

  function draw() {
    if (!plan || !width) return;
    const painted = JSON.stringify([plan.choices, sizes()]);
    const now = `${painted} ${width}`;
    if (now === drawnFor) return;
    const anew = drawnFor !== "" && !drawnFor.startsWith(`${painted} `);
    drawnFor = now;
    scene.draw(plan, shapes[model.get("model")], width);
    const stations = scene.stations();
    pass.pause();
    pass.reset({ duration: stations, seconds: stations * STATION_S, stops: Array.from({ length: stations + 1 }, (_, at) => at) });
    pass.seek(stations);
    if (anew && !reducedMotion()) pass.play(); // not where only the page has become wider
  }

  function asked() {
    const words = model.get("question");
    question.className = words ? "question" : "";
    hint.hidden = Boolean(words);
    if (!words) return question.replaceChildren();
    if (question.firstChild) return;
    const open = html("button", { type: "button", onclick: () => share({ question: "" }) }, "Paint without predicting");
    question.append(html("p", { style: "margin:0 0 6px" }, words), open);
  }

  function tell() {
    const tried = model.get("tried");
    const best = cheapest(sizes());
    const [alpha, beta] = links[model.get("link")];
    const us = timeUs(plan, alpha, beta);
    const won = best && tried.includes(keyOf(best.choices)) && !model.get("question");
    const cost = plan.forced.length ? `each rank sends ${bytesText(plan.sent)} per block, ${timeText(us)} on the link` : "nothing is sent";
    status.say(`${capital(plan.summary)}: ${cost}.`);
    goal.className = won && plan.n > 1 ? "question found" : "question";
    goal.textContent = goalText(plan, best, won, tried.length);
    put(board, { "aria-label": `${tried.length} of 81 paintings tried` });
    cells.forEach((cell, at) => {
      const names = [!KEYS[at].includes("=") && "cut", tried.includes(KEYS[at]) && "tried", KEYS[at] === keyOf(plan.choices) && "here"];
      if (won && KEYS[at] === keyOf(best.choices)) names.push("best");
      put(cell, { class: names.filter(Boolean).join(" "), title: tried.includes(KEYS[at]) ? ALL[at].join(", ") : "not tried yet" });
    });
    priceTable(won && best, alpha, beta);
    const held = plan.weights / (best ?? plan).weights;
    note.className = "status";
    note.textContent = [
      `${number(alpha)} µs per message, ${number(beta)} GB/s per rank; weights and activations have 2 bytes.`,
      held > 1 && ` Each rank holds and multiplies ${number(held)} times the weights of an even cut.`,
    ].filter(Boolean).join("");
    reasons.replaceChildren(html("h4", {}, plan.forced.length ? "Why" : "No collective is forced"));
    reasons.append(html("ul", { class: "why" }, ...plan.forced.map((step) => html("li", {},
      html("span", { class: "kind" }, `${step.collective} ${bytesText(step.payload)}`), ` before ${step.name}: ${step.why}`))));
  }

  function priceTable(best, alpha, beta) {
    const layers = shapes[model.get("model")].num_layers;
    const columns = best && keyOf(best.choices) !== keyOf(plan.choices) ? [plan, best] : [plan];
    const line = (name, value) => html("tr", {}, html("th", { scope: "row" }, name), ...columns.map((each) => html("td", {}, value(each))));
    const heads = ["this painting", "the cheapest"].slice(0, columns.length);
    table.replaceChildren(html("table", {},
      html("thead", {}, html("tr", {}, html("th", {}, "on each rank"), ...heads.map((text) => html("th", { scope: "col" }, text)))),
      html("tbody", {},
        line("collectives per block", (each) => each.summary),
        line("sent per block, as rings", (each) => bytesText(each.sent)),
        line("time on the link, one block", (each) => timeText(timeUs(each, alpha, beta))),
        line(`time on the link, ${layers} blocks`, (each) => timeText(layers * timeUs(each, alpha, beta))),
        line("weights of a block", (each) => bytesText(each.weights)),
        line(`weights of ${layers} blocks`, (each) => bytesText(layers * each.weights)),
        line("KV cache of a token, all blocks", (each) => bytesText(layers * each.kvBytesPerToken)))));
  }

  function passText(t) {
    return t >= scene.stations() ? "whole pass" : `step ${Math.floor(t) + 1} of ${scene.stations()}`;
  }

  const watched = ["choices", "ranks", "tokens", "model", "link", "tried", "question"];
  watched.forEach((name) => model.on(`change:${name}`, show));
  const observer = new ResizeObserver(() => {
    const now = Math.floor(picture.clientWidth);
    if (now === width || now < 100) return;
    width = now;
    draw();
  });
  observer.observe(picture);
  show();
  return () => {
    watched.forEach((name) => model.off(`change:${name}`, show));
    observer.disconnect();
    pass.destroy();
    scene.destroy();
  };
}

function goalText(plan, best, won, tried) {
  const count = `${tried} of 81 paintings tried.`;
  if (plan.n === 1) return "One rank: every painting is the same, and nothing is sent. Take more ranks.";
  if (!best) return `${count} Not all four matrices can be cut over ${plan.n} ranks.`;
  if (!won) return `${count} All four matrices can be cut in 16 ways: find the one that costs the least.`;
  return `Found, after ${tried} of 81 paintings: ${best.choices.join(", ")} costs the least of those that cut all four (${best.summary}).`;
}

function keyOf(choices) {
  return choices.map((choice) => ({ column: "|", row: "-", replicated: "=" })[choice]).join("");
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
