// Schedules as rows of actions, as tplab.pipeline has them: built, written, checked, simulated. No page, no kernel.
// Held to Python's build_schedule, faults and simulate on many tables by tests/browser/test_pictures_editor.py.
//
// A table is { p, v, m, placement, needs, rows }: p ranks with v stages each, m micro-batches, `placement` "loop" or "v",
// `needs` [phase, kv_from, token_from] per micro-batch in inference (else empty), rows of actions { stage, op, micro, key }.

export const OPS = ["F", "B", "I", "W"];
const CODE = { F: 0, B: 1, I: 2, W: 3 };

export function makeAction(stage, op, micro) {
  return { stage, op, micro, key: `${stage}${op}${micro}` };
}

export function rankOf({ p, placement }, stage) {
  const lap = Math.floor(stage / p);
  return placement === "loop" || lap % 2 === 0 ? stage % p : p - 1 - (stage % p);
}

const count = (n) => Array.from({ length: Math.max(0, n) }, (_, index) => index);

function alternating(p, m, r, backwardsOf) {
  const warmUp = Math.min(m, p - 1 - r);
  const row = count(warmUp).map((i) => makeAction(r, "F", i));
  for (let i = 0; i < m; i++) {
    if (warmUp + i < m) row.push(makeAction(r, "F", warmUp + i));
    row.push(...backwardsOf(i));
  }
  return row;
}

function interleavedRow(p, m, v, r) {
  const place = (index) => [Math.floor((index % (p * v)) / p), Math.floor(index / (p * v)) * p + (index % p)];
  const forward = (index) => makeAction(place(index)[0] * p + r, "F", place(index)[1]);
  const backward = (index) => makeAction((v - 1 - place(index)[0]) * p + r, "B", place(index)[1]);
  const warmUp = Math.min((v - 1) * p + 2 * (p - 1 - r), m * v);
  const row = count(warmUp).map(forward);
  for (let index = 0; index < m * v; index++) {
    if (warmUp + index < m * v) row.push(forward(warmUp + index));
    row.push(backward(index));
  }
  return row;
}

const ROWS = {
  gpipe: (p, m, r) => [
    ...count(m).map((i) => makeAction(r, "F", i)),
    ...count(m).reverse().map((i) => makeAction(r, "B", i)),
  ],
  "1f1b": (p, m, r) => alternating(p, m, r, (i) => [makeAction(r, "B", i)]),
  "zb-h1": (p, m, r) => [
    ...alternating(p, m, r, (i) => [makeAction(r, "I", i), ...(i >= r ? [makeAction(r, "W", i - r)] : [])]),
    ...count(m).slice(Math.max(0, m - r)).map((i) => makeAction(r, "W", i)),
  ],
};

/** The table called `name`; null where there is none, as for `interleaved` with m that p does not divide. */
export function buildTable(name, p, m, v = 1) {
  if (name === "interleaved" && m % p) return null;
  const row = name === "interleaved" ? interleavedRow : ROWS[name];
  const rows = count(p).map((r) => (name === "interleaved" ? row(p, m, v, r) : row(p, m, r)));
  return { p, m, v: name === "interleaved" ? v : 1, placement: "loop", needs: [], rows };
}

/** The text form of torch.distributed.pipelining. */
export function writeTable({ rows }) {
  return rows.map((row) => `${row.map(({ key }) => key).join(",") || '""'}\n`).join("");
}

/** The table that `writeTable` wrote; `needs` as in a table, of no meaning to one that trains. */
export function readTable(text, needs = []) {
  const rows = text.trimEnd().split("\n").map((line) =>
    [...line.matchAll(/(\d+)([FBIW])(\d+)/g)].map(([, stage, op, micro]) => makeAction(+stage, op, +micro)),
  );
  const all = rows.flat();
  const p = rows.length;
  const v = Math.floor(Math.max(...all.map(({ stage }) => stage), p - 1) / p) + 1;
  const table = { p, v, m: Math.max(...all.map(({ micro }) => micro)) + 1, placement: "loop", needs: isTraining({ rows }) ? [] : needs, rows };
  const fits = (each) => rows.every((row, rank) => row.every(({ stage }) => rankOf(each, stage) === rank));
  const bent = { ...table, placement: "v" };
  return !fits(table) && fits(bent) ? bent : table;
}

export const isTraining = ({ rows }) => rows.some((row) => row.some(({ op }) => op !== "F"));

/** Where each action stands: `list` of all, rank after rank, `first` of each rank, `at(stage, op, micro)` or -1. */
function indexed(table) {
  const { p, v, m, rows } = table;
  const stages = p * v;
  const list = rows.flat();
  const first = [0];
  for (const row of rows) first.push(first[first.length - 1] + row.length);
  const places = new Int32Array(stages * m * 4).fill(-1);
  const slot = (stage, op, micro) => (stage * m + micro) * 4 + CODE[op];
  const inside = ({ stage, micro }) => stage >= 0 && stage < stages && micro >= 0 && micro < m;
  list.forEach((each, position) => {
    if (inside(each) && places[slot(each.stage, each.op, each.micro)] < 0) places[slot(each.stage, each.op, each.micro)] = position;
  });
  const at = (stage, op, micro) => (micro < 0 || stage < 0 || stage >= stages ? -1 : places[slot(stage, op, micro)]);
  const backward = (stage, micro) => (at(stage, "B", micro) >= 0 ? at(stage, "B", micro) : at(stage, "I", micro));
  const rank = new Int32Array(list.length);
  rows.forEach((row, r) => rank.fill(r, first[r], first[r + 1]));
  return { list, first, at, backward, rank, inside, stages };
}

/** Position of what each action waits for (-1: nothing), by the same rule as tplab.pipeline.table. */
function arrows(table, index) {
  const { list, at, backward, stages } = index;
  return Int32Array.from(list, ({ stage, op, micro }) => {
    if (op === "W") return -1;
    if (op !== "F") return stage + 1 < stages ? backward(stage + 1, micro) : -1;
    return stage > 0 ? at(stage - 1, "F", micro) : at(stages - 1, "F", table.needs[micro]?.[2] ?? -1);
  });
}

const seconds = (costs, { op, stage }, v) => {
  const of = (value) => (Array.isArray(value) ? value[stage] : value / v);
  return op === "F" ? of(costs.forward) : (op === "W" ? 0 : of(costs.input)) + (op === "I" ? 0 : of(costs.weight));
};

/**
 * Every rank as far as it gets: `start` and `end` of each action, `arrived` of its message, `reached` per rank.
 * `costs`: { forward, input, weight } in one unit of time, a number (of a rank's share) or one per stage, and { hop }.
 */
export function simulateTable(table, costs) {
  const index = indexed(table);
  const { list, first, rank } = index;
  const waits = arrows(table, index);
  const start = new Float64Array(list.length);
  const end = new Float64Array(list.length);
  const done = new Uint8Array(list.length);
  const reached = first.slice(0, -1);
  const clock = new Float64Array(table.p);
  const waiting = []; // by action: the ranks that wait for it
  const ready = count(table.p);
  while (ready.length) {
    const r = ready.pop();
    let position = reached[r];
    for (; position < first[r + 1]; position++) {
      const needed = waits[position];
      if (needed >= 0 && !done[needed]) {
        waiting[needed] = [...(waiting[needed] ?? []), r];
        break;
      }
      const there = needed < 0 ? 0 : end[needed] + (rank[needed] === r ? 0 : costs.hop);
      start[position] = Math.max(clock[r], there);
      end[position] = clock[r] = start[position] + seconds(costs, list[position], table.v);
      done[position] = 1;
      if (waiting[position]) ready.push(...waiting[position]);
    }
    reached[r] = position;
  }
  return { ...index, waits, start, end, reached, ...measures(table, index, start, end) };
}

function measures(table, { list }, start, end) {
  const last = end.reduce((most, each) => Math.max(most, each), 0);
  const makespan = list.length ? last - start.reduce((least, each) => Math.min(least, each), last) : 0;
  const work = list.reduce((sum, _, position) => sum + end[position] - start[position], 0);
  const total = makespan * table.p;
  return { makespan, idleOverTotal: total ? (total - work) / total : 0, peaks: peaksOf(table) };
}

/** What a rank holds while it does each action of its row, in micro-batches; a chunk counts 1/v. */
export function heldOf(table) {
  const trains = isTraining(table);
  return table.rows.map((row) => {
    let held = 0;
    return row.map(({ op }) => {
      if (!trains) return op === "F" ? 1 / table.v : 0;
      const before = held;
      if (op === "F") held += 1;
      if (op === "B" || op === "W") held -= 1;
      return Math.max(before, held) / table.v;
    });
  });
}

export const peaksOf = (table) => heldOf(table).map((row) => Math.max(0, ...row));

const named = (table, { stage, op, micro }) => (table.v > 1 ? `${op}${micro} of stage ${stage}` : `${op}${micro}`);

/**
 * What is wrong, as { kind, rank, step, key, text }; none for a table that is right. The kinds are those of
 * tplab.pipeline.faults; waits and memory are looked at once the cells are right, as there.
 */
export function faultsOf(table, cap = null) {
  const index = indexed(table);
  const found = cellFaults(table, index);
  if (found.length) return found;
  const stuck = waitFaults(table, index);
  return stuck.length || cap === null ? stuck : memoryFaults(table, cap);
}

function cellFaults(table, { list, first, at, inside, rank, stages }) {
  const found = [];
  const add = (kind, position, text) =>
    found.push({ kind, rank: rank[position], step: position - first[rank[position]], key: list[position].key, text });
  list.forEach((each, position) => {
    if (!inside(each)) return add("out of range", position, `${named(table, each)} is not within the table's stages and micro-batches`);
    const home = rankOf(table, each.stage);
    if (home !== rank[position]) add("wrong rank", position, `${named(table, each)} belongs on rank ${home}, which holds its layers`);
    if (at(each.stage, each.op, each.micro) !== position) add("duplicate", position, `${named(table, each)} stands here a second time`);
    const early = (before, why) => {
      if (before <= position || rank[before] !== rank[position] || at(each.stage, each.op, each.micro) !== position) return;
      const needed = `${named(table, list[before])}, ${why}, which rank ${rank[before]} would only do after it`;
      add("order", position, `${named(table, each)} on rank ${rank[position]} needs ${needed}`);
    };
    if (each.op === "B" || each.op === "I") early(at(each.stage, "F", each.micro), "its forward");
    if (each.op === "W") early(at(each.stage, "I", each.micro), "the first half of the same backward");
    if (each.op === "F") early(at(each.stage, "F", table.needs[each.micro]?.[1] ?? -1), "whose keys and values it reads");
  });
  const missing = (kind, stage, op, micro) => {
    const key = `${stage}${op}${micro}`;
    found.push({ kind, rank: rankOf(table, stage), step: null, key, text: `${key} is missing` });
  };
  const trains = isTraining(table);
  for (let stage = 0; stage < stages; stage++) {
    for (let micro = 0; micro < table.m; micro++) {
      const [f, b, i, w] = OPS.map((op) => at(stage, op, micro) >= 0);
      if (!f) missing("missing", stage, "F", micro);
      if (!trains) continue;
      if (b && (i || w)) add("two backwards", at(stage, "B", micro), `${stage}B${micro} is a whole backward, and the same stands as I or W too`);
      else if (!b && !i) missing("missing", stage, w ? "I" : "B", micro);
      else if (!b && !w) missing("missing", stage, "W", micro);
    }
  }
  return found;
}

const FREE = { forward: 0, input: 0, weight: 0, hop: 0 };

function waitFaults(table, { list, first, rank }) {
  const { reached, waits } = simulateTable(table, FREE);
  const stuck = reached.findIndex((position, r) => position < first[r + 1]);
  if (stuck < 0) return [];
  const path = [];
  for (let r = stuck; !path.includes(r); r = rank[waits[reached[r]]]) path.push(r);
  const circle = path.slice(path.indexOf(rank[waits[reached[path[path.length - 1]]]]));
  const say = (position) => `${named(table, list[position])} of rank ${rank[position]}`;
  const legs = circle.map((r) => `rank ${r} stands at ${named(table, list[reached[r]])} and waits for ${say(waits[reached[r]])}`);
  const text = `nobody could go on: ${legs.join("; ")}`;
  return circle.map((r) => ({ kind: "circular wait", rank: r, step: reached[r] - first[r], key: list[reached[r]].key, text }));
}

function memoryFaults(table, cap) {
  return heldOf(table).flatMap((row, rank) => {
    const step = row.findIndex((held) => held > cap + 1e-9);
    if (step < 0) return [];
    const each = table.rows[rank][step];
    const text = `${named(table, each)} makes rank ${rank} hold ${Number(row[step].toFixed(3))} micro-batches; the memory cap is ${cap}`;
    return [{ kind: "memory", rank, step, key: each.key, text }];
  });
}

/** The table with the action at `from` of a rank moved to `to` of the same rank. */
export function moved(table, rank, from, to) {
  const row = [...table.rows[rank]];
  row.splice(to, 0, ...row.splice(from, 1));
  return { ...table, rows: table.rows.map((each, r) => (r === rank ? row : each)) };
}

/** The table with the chosen whole backwards as an I and the W behind it. */
export function split(table, chosen = () => true) {
  const halves = (each) =>
    each.op === "B" && chosen(each) ? [makeAction(each.stage, "I", each.micro), makeAction(each.stage, "W", each.micro)] : [each];
  return { ...table, rows: table.rows.map((row) => row.flatMap(halves)) };
}

/** The table with the chosen I and W as whole backwards, where the I stood. */
export function joined(table, chosen = () => true) {
  const whole = (each) => {
    if (!"IW".includes(each.op) || !chosen(each)) return [each];
    return each.op === "I" ? [makeAction(each.stage, "B", each.micro)] : [];
  };
  return { ...table, rows: table.rows.map((row) => row.flatMap(whole)) };
}
