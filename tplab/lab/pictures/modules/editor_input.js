// What the pointer and the keys do to the editor's tiles. Nothing is decided here: `actions` judges, commits, refuses.

import { number } from "./common.js";
import { moved } from "./schedule.js";

/** `view`: the drawing; `parts`: its elements and measures; `actions`: what the editor does (see editor.js). */
export function listen(view, parts) {
  const { picture, actions } = parts;
  const keyOf = (event) => event.target.closest?.(".tile")?.dataset.key ?? null;
  let drag = null;
  picture.addEventListener("pointerdown", (event) => {
    const key = keyOf(event);
    if (key === null || event.button !== 0 || drag) return;
    event.preventDefault();
    chooseTile(key);
    drag = beginDrag(view, parts, key, event);
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", (event) => drag?.follow(event));
  const end = (event) => {
    drag?.drop(event.type === "pointerup");
    drag = null;
  };
  picture.addEventListener("pointerup", end);
  picture.addEventListener("pointercancel", end);
  picture.addEventListener("focusin", (event) => keyOf(event) && actions.chosen(keyOf(event)));

  function chooseTile(key) {
    actions.chosen(key);
    view.focus(key, true);
  }

  picture.addEventListener("keydown", (event) => {
    const key = keyOf(event);
    if (drag) {
      // Nothing else while a tile is held: what it would change is what the tile is moved in.
      event.preventDefault();
      event.stopPropagation();
      if (event.key !== "Escape") return;
      drag.drop(false);
      drag = null;
      return;
    }
    const done = key !== null && (event.altKey ? shift(key, event) : event.ctrlKey || event.metaKey ? recall(event) : walk(key, event));
    if (!done) return;
    event.preventDefault();
    event.stopPropagation();
  });

  function walk(key, event) {
    const { rows } = actions.table();
    const [rank, place] = actions.at(key);
    const to = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: rows[rank].length - 1 }[event.key];
    if (to !== undefined) {
      if (rows[rank][to]) chooseTile(rows[rank][to].key);
      return true;
    }
    const other = { ArrowUp: rank - 1, ArrowDown: rank + 1 }[event.key];
    if (other !== undefined) {
      if (rows[other]?.length) chooseTile(nearest(rank, place, other));
      return true;
    }
    const act = { s: () => actions.cut(key), h: actions.hint }[event.key.toLowerCase()];
    act?.();
    return Boolean(act);
  }

  /** The tile of another rank that starts at about the same time. */
  function nearest(rank, place, other) {
    const { table, result } = parts.shown();
    const time = result.start[result.first[rank] + place];
    const late = (at) => Math.abs(result.start[result.first[other] + at] - time);
    const best = table.rows[other].reduce((best, _, at) => (late(at) < late(best) ? at : best), 0);
    return table.rows[other][best].key;
  }

  /** Alt + arrow: a place earlier or later; with Shift the next place where it may stand. */
  function shift(key, event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return false;
    const table = actions.table();
    const [rank, from] = actions.at(key);
    const inside = (to) => to >= 0 && to < table.rows[rank].length;
    let to = from + by;
    while (event.shiftKey && inside(to) && actions.judge(moved(table, rank, from, to))) to += by;
    if (!inside(to)) {
      actions.say(event.shiftKey ? "There is no further place where it may stand." : "It is at the end of its lane.");
      return true;
    }
    actions.commit(moved(table, rank, from, to), actions.told(rank, from, to));
    view.focus(key, true);
    return true;
  }

  function recall(event) {
    const act = { z: event.shiftKey ? actions.redo : actions.undo, y: actions.redo }[event.key.toLowerCase()];
    act?.();
    return Boolean(act);
  }
}

function beginDrag(view, { picture, lanes, caret, tiles, actions, x, y, put, shown, top, lane, gutter, width }, key, event) {
  const { table, result } = shown();
  const [rank, from] = actions.at(key);
  const first = result.first[rank];
  const tile = tiles.get(key);
  const pointer = (at) => {
    const box = picture.getBoundingClientRect();
    return [((at.clientX - box.left) * width) / box.width, ((at.clientY - box.top) * width) / box.width];
  };
  const [downX, downY] = pointer(event);
  const [grabX, grabY] = [downX - x(result.start[first + from]), downY - y(rank)];
  const others = table.rows[rank].map((_, place) => place).filter((place) => place !== from);
  const middle = (place) => (x(result.start[first + place]) + x(result.end[first + place])) / 2;
  let latest = null;
  let request = 0;
  let spot = { to: from, fault: null, next: null };

  function judge(over, to) {
    if (over !== rank) {
      const action = table.rows[rank][from];
      const what = `${action.op}${action.micro}`;
      return { over, to, next: null, fault: { kind: "wrong rank", key, text: `${what} belongs on rank ${rank}: its layers are there, not on rank ${over}` } };
    }
    if (to === from) return { over, to, next: null, fault: null };
    const next = moved(table, rank, from, to);
    return { over, to, next, fault: actions.judge(next) };
  }

  function look() {
    request = 0;
    if (actions.table() !== table) return; // the kernel, or a button, has put another one here
    const [atX, atY] = pointer(latest);
    if (!tile.group.classList.contains("dragging")) {
      if (Math.abs(atX - downX) + Math.abs(atY - downY) < 4) return;
      tile.group.classList.add("dragging");
    }
    tile.group.style.transform = `translate(${Math.max(gutter - 6, atX - grabX)}px, ${atY - grabY}px)`;
    const over = Math.min(lanes.length - 1, Math.max(0, Math.floor((atY - top + 4) / lane)));
    const centre = atX - grabX + tile.length / 2;
    const to = others.filter((place) => middle(place) < centre).length;
    if (spot.over === over && spot.to === to) return;
    spot = judge(over, to);
    show(spot);
  }

  function show({ over, to, next, fault }) {
    lanes.forEach((each, at) => each.setAttribute("class", `lane ${at === over && (next || fault) ? (fault ? "cannot" : "can") : ""}`));
    const good = next !== null && !fault;
    const then = good ? actions.simulated(next) : result;
    put(good ? next : table, then, { except: key });
    const before = others[to - 1];
    const time = good ? then.start[first + to] : before === undefined ? 0 : result.end[first + before];
    caret.setAttribute("class", `caret ${fault ? "cannot" : ""}`);
    caret.setAttribute("x", x(time) - 2);
    caret.setAttribute("y", y(over) - 4);
    caret.setAttribute("visibility", next || fault ? "visible" : "hidden");
    if (fault) actions.say(`Not here: ${fault.text}.`, "bad");
    else if (good) actions.say(foreseen(next, then, rank, to, result.makespan), then.makespan < result.makespan - 1e-9 ? "good" : "");
    else actions.say("Where it was.");
  }

  return {
    follow(at) {
      latest = at;
      request ||= requestAnimationFrame(look);
    },
    drop(wanted) {
      if (request) {
        cancelAnimationFrame(request);
        look();
      }
      tile.group.classList.remove("dragging");
      lanes.forEach((each) => each.setAttribute("class", "lane"));
      caret.setAttribute("visibility", "hidden");
      if (actions.table() !== table) return;
      const { to, next, fault } = spot;
      if (wanted && next && !fault) {
        actions.commit(next, actions.told(rank, from, to));
        return;
      }
      put(table, result);
      if (wanted && fault) actions.refuse(fault);
    },
  };
}

/** What a place that is allowed leads to: what the tile waits for there, and when all ends. */
function foreseen(table, result, rank, to, before) {
  const position = result.first[rank] + to;
  const { list, waits, start, end, rank: ranks } = result;
  const free = to ? end[position - 1] : 0;
  const needed = waits[position];
  const ends = `It would end at ${number(result.makespan)} F`;
  const change = result.makespan - before;
  const all = Math.abs(change) < 1e-9 ? `${ends}, as now.` : `${ends}, ${number(Math.abs(change))} F ${change < 0 ? "earlier" : "later"}.`;
  if (needed < 0 || start[position] <= free + 1e-9) return `It can go here. ${all}`;
  const name = (at) => `${list[at].op}${list[at].micro}`;
  return `It can go here, but ${name(position)} on rank ${rank} needs ${name(needed)} of rank ${ranks[needed]}, which is only done at ${number(end[needed])} F: rank ${rank} waits ${number(start[position] - free)} F. ${all}`;
}
