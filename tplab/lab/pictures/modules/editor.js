// The schedule editor: every action a tile on its rank's lane, dragged or moved by keys, judged at once.
// Everything is decided here, so a page of its own needs no kernel; with one, Python reads `text` and judges for itself.

import { dropdown, frame, html, number, slider } from "./common.js";
import { WORDS, fillOf, followWidth, onPage } from "./lanes.js";
import { buildTable, faultsOf, isTraining, joined, peaksOf, readTable, simulateTable, split, writeTable } from "./schedule.js";
import { EDITOR_STYLE, buildDrawing } from "./editor_lanes.js";
import { bestMove, scoresOf, verdictOf } from "./score.js";

const STARTS = [["GPipe", "gpipe"], ["1F1B", "1f1b"], ["interleaved, 2 chunks", "interleaved"], ["ZB-H1", "zb-h1"]];

export function render({ model, el }) {
  let editor = null;
  let unfollow = () => {};
  const build = () => {
    unfollow();
    const root = frame(el, "Schedule editor", EDITOR_STYLE);
    editor = buildEditor(model, root);
    unfollow = followWidth(root, editor.resize);
  };
  const fromKernel = () => editor.load();
  for (const name of ["text", "costs", "cap"]) model.on(`change:${name}`, fromKernel);
  model.on("change:original", build);
  build();
  return () => {
    for (const name of ["text", "costs", "cap"]) model.off(`change:${name}`, fromKernel);
    model.off("change:original", build);
    unfollow();
  };
}

function buildEditor(model, root) {
  let table = readTable(model.get("text"), model.get("needs"));
  let past = [];
  let future = [];
  let width = 800;
  let drawing = null;
  let focused = table.rows[0][0].key;
  const message = html("div", { class: "message", role: "status", "aria-live": "polite" });
  const scene = html("div", { class: "scene" });
  const board = html("div", {});
  const csv = html("textarea", { readonly: true, rows: 5, "aria-label": "the table as text" });

  function say(text, kind = "") {
    message.className = `message ${kind}`;
    message.textContent = text;
  }

  /** What forbids `next`; null if nothing does. A table over the cap may be mended step by step: no rank may hold more. */
  function judge(next) {
    const held = peaksOf(table);
    const worse = ({ kind, rank }) => kind !== "memory" || peaksOf(next)[rank] > held[rank] + 1e-9;
    return faultsOf(next, model.get("cap")).find(worse) ?? null;
  }

  const asIs = () => ({ table, cap: model.get("cap") });

  /** The cap with which `next` is entered: `cap` where it is of other sizes, or of another kind; else the reader's. */
  function takeCap(next, cap) {
    const alike = next.p === table.p && next.m === table.m && isTraining(next) === isTraining(table);
    if (!alike) model.set("cap", cap);
  }

  /** Make `next` the table, unless something forbids it; returns whether it is. */
  function commit(next, told, { keep = true } = {}) {
    const fault = keep ? judge(next) : null;
    if (fault) {
      refuse(fault);
      return false;
    }
    if (keep) {
      past.push(asIs());
      future = [];
    }
    const before = simulateTable(table, model.get("costs")).makespan;
    table = next;
    const after = simulateTable(table, model.get("costs")).makespan;
    say(`${told} ${changeIn(before, after)}`, after < before - 1e-9 ? "good" : "");
    store();
    refresh();
    return true;
  }

  function refuse(fault) {
    say(`Refused: ${fault.text}.`, "bad");
    drawing?.flash(fault.key);
    model.set("refusal", fault.text);
    model.save_changes();
  }

  /** Hand the table to the kernel, where there is one. */
  function store() {
    model.set("text", writeTable(table));
    model.set("refusal", "");
    model.save_changes();
  }

  function load() {
    if (model.get("text") !== writeTable(table)) {
      const next = readTable(model.get("text"), model.get("needs"));
      const fault = next.rows.every((row) => row.length) ? faultsOf(next)[0]?.text : "a rank has no action";
      if (fault) return say(`The table that was sent cannot run: ${fault}. Here is the one before.`, "bad");
      table = next;
      [past, future] = [[], []];
    }
    showControls();
    refresh();
  }

  function refresh() {
    const walking = root.querySelector(".tile:focus") !== null;
    if (!locate(table, focused)) focused = sibling(table, focused);
    const scores = scoresOf(table, model.get("costs"), model.get("cap"));
    board.replaceChildren(scoreboard(scores));
    csv.value = writeTable(table);
    const { makespan, idleOverTotal, peaks } = scores.yours;
    const first = scores.others.find(({ name }) => name === "1F1B");
    model.set("result", {
      makespan, idle_over_total: idleOverTotal, peaks, over_cap: scores.yours.over,
      beats_1f1b: Boolean(first && !scores.yours.over && makespan < first.makespan - 1e-9),
    });
    model.save_changes();
    undo.disabled = !past.length;
    redo.disabled = !future.length;
    halves.textContent = table.rows.some((row) => row.some(({ op }) => op === "B")) ? "Split all backwards" : "Join all backwards";
    halves.disabled = !isTraining(table);
    if (drawing === null || !drawing.fits(table, width)) {
      drawing = buildDrawing(actions, table, width);
      scene.replaceChildren(drawing.svg);
    }
    drawing.show(table, simulateTable(table, model.get("costs")), scores, model.get("cap"));
    drawing.focus(focused, walking);
  }

  const step = (from, to, told) => {
    if (!from.length) return say(`Nothing to ${told}.`);
    to.push(asIs());
    const next = from.pop();
    takeCap(next.table, next.cap);
    commit(next.table, told === "undo" ? "Undone." : "Done again.", { keep: false });
    showControls();
  };
  const undo = html("button", { type: "button", onclick: () => step(past, future, "undo") }, "Undo");
  const redo = html("button", { type: "button", onclick: () => step(future, past, "redo") }, "Redo");
  const halves = html("button", { type: "button", onclick: () => {
    const whole = halves.textContent.startsWith("Split");
    commit(whole ? split(table) : joined(table), whole ? "Every backward is cut in two: I, which another rank waits for, and W, which nobody waits for." : "Backwards are whole again.");
  } });
  const hint = html("button", { type: "button", onclick: () => {
    say("Looking …");
    const asked = table;
    bestMove(table, model.get("costs"), model.get("cap"), (found) => {
      if (table !== asked) return; // it was changed meanwhile
      say(found.text, found.key ? "good" : "");
      if (found.key) drawing.pulse(found.key);
    });
  } }, "Hint");
  const built = STARTS.some(([, name]) => name === model.get("name")) && buildTable(model.get("name"), table.p, table.m, 2);
  const given = built && writeTable(built) === model.get("original") ? [] : [[model.get("name"), "given"]];
  const start = dropdown({
    label: "start from", options: [...STARTS, ...given], value: given[0]?.[1] ?? model.get("name"), onChange: () => restart(),
  });
  const reset = html("button", { type: "button", onclick: () => restart() }, "Reset");
  const ranks = slider({ label: "ranks", min: 1, max: Math.max(8, table.p), value: 4, onInput: () => restart() });
  const micros = slider({ label: "micro-batches", min: 1, max: Math.max(16, table.m), value: 8, onInput: () => restart() });
  const memory = slider({ label: "memory cap", min: 0, max: Math.max(16, table.m), value: 4, format: (cap) => (cap ? `${cap} held` : "none"), onInput: (cap) => {
    model.set("cap", cap || null);
    model.save_changes();
    refresh();
  } });

  /** From a built schedule, or from the one that the editor was made with. */
  function restart() {
    const name = start.value();
    const p = ranks.value();
    const wish = micros.value();
    const rounds = wish < table.m ? Math.floor(wish / p) : Math.ceil(wish / p); // of interleaved, in the slider's direction
    const m = name === "interleaved" ? p * Math.max(1, rounds) : wish;
    const next = name === "given" ? readTable(model.get("original"), model.get("needs")) : buildTable(name, p, m, 2);
    past.push(asIs());
    future = [];
    const least = Math.min(next.p, next.m);
    takeCap(next, !isTraining(next) ? null : name === "given" ? Math.max(least, ...peaksOf(next)) : Math.min(next.p, next.m));
    table = next;
    focused = table.rows[0][0].key;
    say(`${start.input.selectedOptions[0].textContent}, ${table.p} ranks, ${table.m} micro-batches.`);
    store();
    showControls();
    refresh();
  }

  function showControls() {
    ranks.set(table.p);
    micros.set(table.m);
    memory.set(model.get("cap") ?? 0);
  }

  /** What the drawing asks for: places are of the table that is shown. */
  const actions = {
    table: () => table,
    at: (key) => locate(table, key),
    judge,
    simulated: (next) => simulateTable(next, model.get("costs")),
    told: (rank, from, to) => `${spoken(table, rank, from)} ${to < from ? "earlier" : "later"}, to place ${to + 1}.`,
    commit, refuse, say,
    chosen: (key) => { focused = key; },
    undo: () => undo.click(),
    redo: () => redo.click(),
    hint: () => hint.click(),
    cut(key) {
      const [rank, place] = locate(table, key);
      const { op, stage, micro } = table.rows[rank][place];
      const same = (each) => each.stage === stage && each.micro === micro;
      if (op === "F") return say("A forward cannot be cut.");
      focused = `${stage}${op === "B" ? "I" : "B"}${micro}`;
      commit(op === "B" ? split(table, same) : joined(table, same), op === "B" ? `B${micro} of rank ${rank} is cut in two.` : `B${micro} of rank ${rank} is whole again.`);
      drawing.focus(focused, true);
    },
  };
  const copy = html("button", { type: "button", onclick: () => {
    csv.select();
    navigator.clipboard?.writeText(csv.value).then(() => say("Copied."), () => say("Select the text and copy it."));
  } }, "Copy");
  root.append(
    html("div", { class: "row" }, html("span", { class: "title" }, isTraining(table) ? "Beat 1F1B" : "Schedule editor"), html("span", { class: "badge" }, "MODEL"), start.element, reset, undo, redo, halves, hint),
    html("div", { class: "row" }, ranks.element, micros.element, memory.element),
    scene, message, keysOf(), board, // words of several lines must not move the lanes under a hand that drags
    html("details", {}, html("summary", {}, "The table as text (one line per rank, as torch.distributed.pipelining reads it)"), csv, copy),
    html("p", { class: "help", id: "help" }, "Drag a tile along its lane: green, it can go there; red, it cannot, and why is said. By keyboard: arrows go from tile to tile, Alt + arrows move it, S cuts a backward in two or joins it, Ctrl + Z undoes, Ctrl + Y redoes, H is a hint."),
  );
  showControls();
  say("Every rank does its tiles from left to right, each as soon as what it needs is there. Make it end earlier.");
  return { load, resize: (now) => { width = now; refresh(); } };
}

const changeIn = (before, after) =>
  Math.abs(after - before) < 1e-9 ? `It ends at ${number(after)} F as before.` : `It ends at ${number(after)} F, ${number(Math.abs(after - before))} F ${after < before ? "earlier" : "later"}.`;

function locate({ rows }, key) {
  for (let rank = 0; rank < rows.length; rank++) {
    const place = rows[rank].findIndex((each) => each.key === key);
    if (place >= 0) return [rank, place];
  }
  return null;
}

/** The key of what stands for `key` now that it is gone: the whole of a half, or a half of a whole. */
function sibling(table, key) {
  const others = ["B", "I", "F"].map((op) => key.replace(/[FBIW]/, op));
  return others.find((each) => locate(table, each)) ?? table.rows[0][0].key;
}

const spoken = ({ rows }, rank, place) => `${rows[rank][place].op}${rows[rank][place].micro} of rank ${rank}`;

function keysOf() {
  const key = (op) => html("span", { class: "key" }, html("i", { style: `background:${onPage(fillOf(op))}` }), `${op} ${WORDS[op]}`);
  return html("div", { class: "row", "aria-hidden": "true" }, ...Object.keys(WORDS).map(key), html("span", { class: "key" }, html("i", { class: "held" }), "held in memory"));
}

/** A row per schedule: when it ends, how much of it is idle, what it holds. */
function scoreboard({ yours, others, longest }) {
  const line = ({ name, makespan, idleOverTotal, peak, over, mine }) =>
    html("tr", { class: mine ? "mine" : over ? "over" : "" },
      html("th", { scope: "row" }, name),
      html("td", { class: "bar" }, html("span", { style: `width:${(100 * makespan) / longest}%` }, html("i", { style: `width:${100 * (1 - idleOverTotal)}%` }))),
      html("td", {}, `${number(makespan, 4)} F`), html("td", {}, `${number(100 * idleOverTotal)} %`),
      html("td", {}, `${number(peak)}${over ? ", over the cap" : ""}`));
  const head = html("tr", {}, ...["", "", "ends at", "bubble (idle / total)", "most held by a rank"].map((text) => html("th", { scope: "col" }, text)));
  const verdict = verdictOf(yours, others);
  return html("div", { class: "board" }, html("div", { class: `verdict ${verdict.won ? "won" : ""}` }, verdict.text),
    html("table", {}, html("thead", {}, head), html("tbody", {}, line(yours), ...others.map(line))));
}
