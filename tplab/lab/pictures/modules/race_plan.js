// All-reduce algorithms as messages and as times: who sends what to whom in which step, and what that takes.
//
// Pure, no document. The times are the closed forms of tplab.collectives.cost.time_us and the messages those of
// tplab/collectives/{ring,two_shot,one_shot,recursive_doubling}.py: tests/browser/test_pictures_race.py compares both.
// Letters as there: n ranks, S bytes of the tensor, a chunk is S/n; alpha in us, beta in GB/s.

const BYTES_PER_US = 1e3; // at 1 GB/s

export const NAMES = {
  "one-shot": "One-shot",
  "recursive-doubling": "Recursive doubling",
  "two-shot": "Two-shot",
  ring: "Ring",
};

export const ALGORITHMS = Object.keys(NAMES);

// The largest power of two up to n.
const powerBelow = (n) => 2 ** Math.floor(Math.log2(n) + 1e-9);

// Steps that follow one another, and bytes that do, in units of S: time = steps * alpha + perByte * S / beta.
// `ownLinks`: every two ranks have a link of their own, so what goes to several of them goes at once.
export function closedForm(algorithm, { n, ownLinks }) {
  const ports = ownLinks ? n - 1 : 1;
  switch (algorithm) {
    case "one-shot":
      return { steps: 1, perByte: (n - 1) / ports };
    case "two-shot":
      return { steps: 2, perByte: (2 * (n - 1)) / n / ports };
    case "ring":
      return { steps: 2 * (n - 1), perByte: (2 * (n - 1)) / n };
    case "recursive-doubling": {
      const p = powerBelow(n);
      const steps = Math.round(Math.log2(p)) + (p === n ? 0 : 2);
      return { steps, perByte: steps };
    }
    default:
      throw new Error(`no algorithm called ${algorithm}: there are ${ALGORITHMS.join(", ")}`);
  }
}

export function timeUs(algorithm, settings) {
  const { steps, perByte } = closedForm(algorithm, settings);
  return steps * settings.alpha + (perByte * settings.nbytes) / (settings.beta * BYTES_PER_US);
}

const range = (n) => Array.from({ length: n }, (_, i) => i);
const modulo = (a, n) => ((a % n) + n) % n;

// The steps of an algorithm: {name, messages: [{from, to, chunks, adds, place}]}. `place` counts the messages that a
// rank sends in the step, for they leave one after the other where it has one link; `adds` says whether what comes is
// added or put in place.
export function stepsOf(algorithm, n) {
  const all = range(n);
  const direct = (name, chunksFor, adds) => ({
    name,
    messages: all.flatMap((from) =>
      range(n - 1).map((place) => {
        const to = (from + place + 1) % n;
        return { from, to, chunks: chunksFor(from, to), adds, place };
      }),
    ),
  });
  if (algorithm === "one-shot") return [direct("everything to everybody", () => all, true)];
  if (algorithm === "two-shot")
    return [direct("reduce-scatter", (_, to) => [to], true), direct("all-gather", (from) => [from], false)];
  if (algorithm === "ring")
    return range(2 * (n - 1)).map((step) => ({
      name: step < n - 1 ? "reduce-scatter" : "all-gather",
      messages: all.map((from) => ({
        ...{ from, to: (from + 1) % n, chunks: [modulo(from - step, n)], adds: step < n - 1, place: 0 },
      })),
    }));
  return doublingSteps(n);
}

function doublingSteps(n) {
  const p = powerBelow(n);
  const folded = n - p;
  const rank = (place) => (place < folded ? 2 * place + 1 : place + folded);
  const whole = (from, to, adds) => ({ from, to, chunks: range(n), adds, place: 0 });
  const steps = [];
  if (folded) steps.push({ name: "fold in", messages: range(folded).map((i) => whole(2 * i, 2 * i + 1, true)) });
  for (let distance = 1; distance < p; distance *= 2)
    steps.push({
      name: `partners ${distance} apart`,
      messages: range(p).map((place) => whole(rank(place), rank(place ^ distance), true)),
    });
  if (folded) steps.push({ name: "fold out", messages: range(folded).map((i) => whole(2 * i + 1, 2 * i, false)) });
  return steps;
}

// What every rank holds, as the summands in each chunk (a bit per rank): held[rank][chunk] at the beginning.
export const heldAtFirst = (n) => range(n).map((rank) => range(n).map(() => 1 << rank));

// The race of one algorithm: its steps in time, its messages with what they carry, and when each leaves and arrives.
export function planOf(algorithm, { n, nbytes, alpha, beta, ownLinks }) {
  const held = heldAtFirst(n);
  const bytesUs = (chunks) => (chunks.length / n) * (nbytes / (beta * BYTES_PER_US));
  const messages = [];
  let start = 0;
  const steps = stepsOf(algorithm, n).map(({ name, messages: sent }, index) => {
    const step = { name, index, start, bytesEnd: start, end: start };
    const arriving = sent.map((message) => {
      const us = bytesUs(message.chunks);
      const leaves = start + (ownLinks ? 0 : message.place * us);
      const load = message.chunks.map((chunk) => held[message.from][chunk]);
      step.bytesEnd = Math.max(step.bytesEnd, leaves + us);
      return { ...message, step: index, load, leaves, sent: leaves + us, arrives: leaves + us + alpha };
    });
    for (const { to, chunks, load, adds } of arriving)
      chunks.forEach((chunk, i) => (held[to][chunk] = adds ? held[to][chunk] | load[i] : load[i]));
    messages.push(...arriving);
    step.end = start = step.bytesEnd + alpha;
    return step;
  });
  return { algorithm, n, nbytes, steps, messages, end: start };
}

// Which algorithm is the fastest from which size on: [{algorithms, from, to}] in bytes, equal ones together.
export function bandsOf(algorithms, settings) {
  const perByte = (algorithm) => closedForm(algorithm, settings).perByte / (settings.beta * BYTES_PER_US);
  const fixed = (algorithm) => closedForm(algorithm, settings).steps * settings.alpha;
  const same = (one, other) => perByte(one) === perByte(other) && fixed(one) === fixed(other);
  const bands = [];
  let from = 0;
  // Lines: the least fixed cost begins; each next one is that which crosses the present one first, with less per byte.
  let now = [...algorithms].sort((a, b) => fixed(a) - fixed(b) || perByte(a) - perByte(b))[0];
  while (now !== undefined) {
    const cheaper = algorithms.filter((other) => perByte(other) < perByte(now) - 1e-15);
    const crossing = (other) => (fixed(other) - fixed(now)) / (perByte(now) - perByte(other));
    const next = cheaper.sort((a, b) => crossing(a) - crossing(b) || perByte(a) - perByte(b))[0];
    const to = next === undefined ? Infinity : crossing(next);
    if (to > from) bands.push({ algorithms: algorithms.filter((other) => same(other, now)), from, to });
    from = Math.max(from, to);
    now = next;
  }
  return bands;
}

// The places of a race: [{algorithm, us, place}], the fastest first; equal times share a place.
export function ranking(algorithms, settings) {
  const sorted = algorithms
    .map((algorithm) => ({ algorithm, us: timeUs(algorithm, settings) }))
    .sort((a, b) => a.us - b.us);
  sorted.forEach((entry, i) => {
    const before = sorted[i - 1];
    entry.place = before && entry.us <= before.us * (1 + 1e-9) ? before.place : i + 1;
  });
  return sorted;
}
