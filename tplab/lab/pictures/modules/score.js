// The editor's score: the same work under the schedules everybody knows, and a hint by trying every single move.

import { number } from "./common.js";
import { buildTable, faultsOf, isTraining, moved, peaksOf, simulateTable, split } from "./schedule.js";

const NAMED = [["1F1B", "1f1b"], ["GPipe", "gpipe"], ["ZB-H1", "zb-h1"]];
const SLICE_MS = 3; // of a frame, while a hint is looked for
const MOST_MS = 1500; // of looking

function scored(name, table, costs, cap, mine = false) {
  const { makespan, idleOverTotal, peaks } = simulateTable(table, costs);
  const peak = Math.max(...peaks);
  return { name, makespan, idleOverTotal, peaks, peak, over: cap !== null && isTraining(table) && peak > cap + 1e-9, mine };
}

/** The table's own score, those of the known schedules under the same cap, and the longest makespan of them all. */
export function scoresOf(table, costs, cap) {
  const yours = scored("yours", table, costs, cap, true);
  const known = isTraining(table) ? NAMED : [];
  const others = known.map(([name, key]) => scored(name, buildTable(key, table.p, table.m), costs, cap));
  return { yours, others, longest: Math.max(yours.makespan, ...others.map(({ makespan }) => makespan)) };
}

/** A sentence on the score, and whether 1F1B is beaten. */
export function verdictOf(yours, others) {
  if (yours.over) return { won: false, text: `Over the memory cap: a rank holds ${number(yours.peak)} micro-batches.` };
  const [first, , zero] = others;
  if (!first) return { won: false, text: `It ends at ${number(yours.makespan, 4)} F.` };
  const [mine, theirs] = [number(yours.makespan, 4), number(first.makespan, 4)];
  if (yours.makespan > first.makespan + 1e-9) return { won: false, text: `1F1B is faster: ${theirs} F, yours ${mine} F.` };
  if (yours.makespan > first.makespan - 1e-9) return { won: false, text: `As fast as 1F1B, ${mine} F. Can you end earlier?` };
  const gap = yours.makespan - zero.makespan;
  const beside = gap < -1e-9 ? " ZB-H1 is beaten, too." : gap > 1e-9 ? ` ZB-H1 ends at ${number(zero.makespan, 4)} F.` : " That is as fast as ZB-H1.";
  const bubble = ({ idleOverTotal }) => `${number(100 * idleOverTotal)} %`;
  return { won: true, text: `1F1B is beaten: ${mine} F instead of ${theirs} F, bubble ${bubble(yours)} instead of ${bubble(first)}.${beside}` };
}

/** The single change that helps most, found a slice of a frame at a time; `done({ text, key })` once all were tried. */
export function bestMove(table, costs, cap, done) {
  const now = simulateTable(table, costs);
  const halves = split(table);
  const cut = simulateTable(halves, costs).makespan;
  if (cut < now.makespan - 1e-9 && !faultsOf(halves, cap).length)
    return done({ key: null, text: `Split all backwards: nobody waits for W, so ranks get their I earlier. It would end at ${number(cut)} F.` });
  let best = { value: valueOf(now), found: null };
  const tries = everyMove(table);
  let spent = 0;
  const look = () => {
    const until = performance.now() + SLICE_MS;
    for (;;) {
      const next = tries.next();
      if (next.done || spent > MOST_MS) return done(inWords(table, best.found));
      const { rank, from, to } = next.value;
      const changed = moved(table, rank, from, to);
      const result = simulateTable(changed, costs);
      const value = valueOf(result);
      if (isLess(value, best.value) && !faultsOf(changed, cap).length) best = { value, found: { rank, from, to, makespan: result.makespan, before: now.makespan } };
      if (performance.now() < until) continue;
      spent += SLICE_MS;
      return requestAnimationFrame(look);
    }
  };
  look();
}

/** All single moves, those of W first: nobody waits for them. */
function* everyMove({ rows }) {
  for (const weights of [true, false])
    for (let rank = 0; rank < rows.length; rank++)
      for (let from = 0; from < rows[rank].length; from++)
        for (let to = 0; (rows[rank][from].op === "W") === weights && to < rows[rank].length; to++)
          if (to !== from) yield { rank, from, to };
}

/** When all ends, and then how early the ranks end: a move that only the next one makes worth its while counts, too. */
function valueOf({ makespan, list, start, reached, first }) {
  const whole = reached.every((position, rank) => position === first[rank + 1]);
  return whole ? [makespan, list.reduce((sum, { op }, at) => sum + (op === "I" || op === "B" ? start[at] : 0), 0)] : [Infinity, Infinity];
}

const isLess = ([a, b], [c, d]) => a < c - 1e-9 || (a < c + 1e-9 && b < d - 1e-9);

function inWords({ rows }, found) {
  if (!found) return { key: null, text: "No move was found that makes it end earlier under this cap." };
  const { rank, from, to, makespan, before } = found;
  const name = ({ op, micro }) => `${op}${micro}`;
  const neighbour = rows[rank][to];
  const where = to < from ? `before ${name(neighbour)}` : `behind ${name(neighbour)}`;
  const gain = makespan < before - 1e-9 ? `it then ends at ${number(makespan)} F` : "that makes room for more";
  return { key: rows[rank][from].key, text: `Move ${name(rows[rank][from])} of rank ${rank} ${where}: ${gain}.` };
}
