// Where everything is at a time of a trace: what a rank does and holds, where a micro-batch is. Computed once.

import { number } from "./common.js";
import { WORDS } from "./lanes.js";

/** The last position in the ascending `values` that is at most `value` (with a hair's breadth); -1 before the first. */
function lastAtMost(values, value) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/**
 * `trace`: columns { rank, stage, op, micro, start, end } of computations; `sent` messages [key, from, to, start, end],
 * key as `2F0` of the computation whose result it is; `needs` as in a schedule's table; { p, v, m }.
 */
export function buildTrip(trace) {
  const computed = trace.op.map((_, at) => at);
  const end = Math.max(0, ...trace.end, ...trace.sent.map((message) => message[4]));
  const near = end * 1e-9;
  const byRank = Array.from({ length: trace.p }, () => []);
  for (const at of computed) byRank[trace.rank[at]].push(at);
  for (const row of byRank) row.sort((a, b) => trace.start[a] - trace.start[b]);
  const starts = byRank.map((row) => Float64Array.from(row, (at) => trace.start[at] - near));
  const running = (rank, time) => {
    const place = lastAtMost(starts[rank], time);
    return place >= 0 && time < trace.end[byRank[rank][place]] - near ? byRank[rank][place] : -1;
  };
  const memory = byRank.map((row) => memoryOf(trace, row));
  const legs = legsOf(trace, end);
  const times = [...new Set([0, ...trace.start, ...trace.end, end])].sort((a, b) => a - b);
  const stops = times.filter((time, index) => !index || time - times[index - 1] > near);
  return {
    end, stops, computed, running,
    perLane: Math.max(0, ...byRank.map((row) => row.length)),
    slots: memory.map(({ slots }) => slots),
    memoryAt: (rank, time) => lastAtMost(memory[rank].times, time + near),
    held: (rank, at) => (at < 0 || !memory[rank].held ? [] : memory[rank].held[at]),
    count: (rank, at) => (at < 0 ? 0 : memory[rank].counts[at]),
    tokenAt: (micro, time) => tokenAt(legs[micro], time),
    told(time) {
      const said = byRank.map((_, rank) => {
        const at = running(rank, time);
        const held = this.count(rank, this.memoryAt(rank, time));
        const doing = at < 0 ? "idle" : `${WORDS[trace.op[at]]} of micro-batch ${trace.micro[at]}`;
        return `${trace.lane} ${rank} ${doing}${trace.trains ? `, holds ${number(held / trace.v)}` : ""}`;
      });
      return said.length <= 8 ? `${said.join("; ")}.` : `${said.filter((text) => !text.includes(" idle")).length} of ${trace.p} ${trace.lane}s work.`;
    },
    summary: ({ title, p, m }) => `${title}. A Gantt chart of ${p} ${trace.lane}s and ${m} micro-batches with a play head; above it the ${trace.lane}s, and what each holds.`,
  };
}

export const MOST_SLOTS = 32; // micro-batches of a rank that are drawn one by one; more are one bar

/** What a rank holds from each change on: how many, and where they are few the micro-batch in each slot, or -1. */
function memoryOf(trace, row) {
  const changes = [];
  for (const at of row) {
    const key = `${trace.stage[at]}.${trace.micro[at]}`;
    if (trace.op[at] === "F") changes.push([trace.start[at], 1, key, trace.micro[at]]);
    const frees = trace.trains ? trace.op[at] === "B" || trace.op[at] === "W" : trace.op[at] === "F";
    if (frees) changes.push([trace.end[at], 0, key]);
  }
  changes.sort((a, b) => a[0] - b[0] || a[1] - b[1]); // at one instant room is made before it is taken
  const times = Float64Array.from(changes, ([time]) => time);
  let now = 0;
  const counts = Int32Array.from(changes, ([, takes]) => (now += takes ? 1 : -1));
  const most = counts.reduce((peak, each) => Math.max(peak, each), 0);
  if (most > MOST_SLOTS) return { slots: most, times, counts, held: null };
  const slots = [];
  const where = new Map();
  const held = changes.map(([, takes, key, micro]) => {
    if (takes) {
      const free = slots.findIndex((each) => each < 0);
      where.set(key, free < 0 ? slots.length : free);
      slots[where.get(key)] = micro;
    } else slots[where.get(key)] = -1;
    return [...slots];
  });
  return { slots: slots.length, times, counts, held };
}

/** Per micro-batch its legs { from, to (times), rank, side, op, toRank, toSide, flies }, one after the other. */
function legsOf(trace, end) {
  const steps = Array.from({ length: trace.m }, () => []);
  trace.op.forEach((op, at) => {
    if (op !== "W") steps[trace.micro[at]].push(at);
  });
  const sent = new Map(trace.sent.map(([key, , , start, stop]) => [key, [start, stop]]));
  const last = trace.p * trace.v - 1;
  return steps.map((row, micro) => {
    row.sort((a, b) => trace.start[a] - trace.start[b] || trace.end[a] - trace.end[b]);
    const legs = [];
    const source = trace.needs[micro]?.[2] ?? null;
    const before = source === null ? null : steps[source].find((at) => trace.stage[at] === last);
    row.forEach((at, index) => {
      const previous = index ? row[index - 1] : before;
      const [rank, op] = [trace.rank[at], trace.op[at]];
      const begin = trace.start[at];
      const short = Math.min(end * 0.02, 0.35 * (trace.end[at] - begin));
      const origin = previous ?? null;
      const leave = origin === null ? begin - short : trace.end[origin];
      let desk = begin;
      if (origin === null || trace.rank[origin] !== rank) {
        const key = origin === null ? "" : `${trace.stage[origin]}${trace.op[origin] === "F" ? "F" : "B"}${trace.micro[origin]}`;
        const [depart, known] = sent.get(key) ?? [leave, leave + short];
        const arrive = origin === null ? begin : Math.min(known, Math.max(begin + short, depart));
        const straight = arrive >= begin - 1e-12;
        const fromRank = origin === null ? rank : trace.rank[origin];
        const side = origin === null || fromRank < rank ? -1 : 1;
        const flight = { from: leave, to: arrive, depart, rank: fromRank, side: 0, op, toRank: rank, toSide: straight ? 0 : side, flies: true, enters: origin === null };
        legs.push(flight);
        if (!straight) legs.push({ from: arrive, to: begin, rank, side, op });
        desk = straight ? arrive : begin;
      } else if (begin > leave) legs.push({ from: leave, to: begin, rank, side: op === "F" ? -1 : 1, op });
      legs.push({ from: desk, to: trace.end[at], rank, side: 0, op });
    });
    return { legs, begins: Float64Array.from(legs, ({ from }) => from) };
  });
}

/** Where a token is: `phase` -1 not yet, 1 done, 0 at `rank` and `side` (0: at work), or flying `part` of the way. */
function tokenAt({ legs, begins }, time) {
  const index = lastAtMost(begins, time);
  if (index < 0) return { phase: -1 };
  const leg = legs[index];
  if (index === legs.length - 1 && time >= leg.to) return { phase: 1 };
  if (!leg.flies) return { phase: 0, rank: leg.rank, side: leg.side, op: leg.op };
  const part = leg.to > leg.depart ? Math.min(1, Math.max(0, (time - leg.depart) / (leg.to - leg.depart))) : 1;
  return { phase: 0, rank: leg.rank, side: 0, op: leg.op, toRank: leg.toRank, toSide: leg.toSide, part, enters: leg.enters };
}
