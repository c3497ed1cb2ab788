// What a painting of a block forces: the same plan as tplab/layers/plan.py makes, so that the painter moves without a
// kernel. A browser test holds the two together over all 81 paintings. Sizes are called as there; bytes are per pass.

export const MATRICES = ["qkv", "out", "up", "down"];
export const CHOICES = ["column", "row", "replicated"];
export const CANONICAL = ["column", "row", "column", "row"];

const CONVERSIONS = {
  partial: { replicated: "all-reduce", split: "reduce-scatter" },
  split: { replicated: "all-gather" },
  replicated: { split: "slice" },
};
const TAKES = {
  column: ["replicated"],
  row: ["split"],
  replicated: ["replicated"],
  attention: ["split", "replicated"],
  activation: ["split", "replicated"],
  "add + norm": ["replicated"],
  add: ["replicated"],
};
const GIVES = { column: "split", row: "partial", replicated: "replicated" };
const NEEDS = {
  attention: "the softmax of attention",
  activation: "the activation function",
  "add + norm": "the residual add before the norm",
  add: "the residual add",
};

// All 81 paintings, each a list of a choice per matrix.
export function paintings() {
  let all = [[]];
  for (const _ of MATRICES) all = all.flatMap((some) => CHOICES.map((choice) => [...some, choice]));
  return all;
}

// Key-value heads that the query heads of each of n ranks use.
export function kvHeadsByRank(numHeads, numKvHeads, n) {
  const group = numHeads / numKvHeads;
  const each = numHeads / n;
  return Array.from({ length: n }, (_, rank) => {
    const [start, end] = [rank * each, (rank + 1) * each];
    return Math.floor((end - 1) / group) + 1 - Math.floor(start / group);
  });
}

// Steps of a block. Throws an Error that says which size does not divide by n.
export function planBlock(choices, sizes) {
  const { hidden, intermediate, num_heads: heads, num_kv_heads: kvHeads, tokens, itemsize, n } = sizes;
  const chosen = Object.fromEntries(MATRICES.map((name, at) => [name, choices[at]]));
  checkDivides(chosen, sizes);
  const dim = hidden / heads;
  const kv = heads % n === 0 ? kvHeadsByRank(heads, kvHeads, n) : null;
  const most = kv && Math.max(...kv);
  const copies = kv && kv.reduce((a, b) => a + b, 0);
  const x = even(hidden, n);
  const headed = even(hidden, n, heads);
  const qkv = {
    full: (heads + 2 * kvHeads) * dim,
    most: kv && (heads / n + 2 * most) * dim,
    total: kv && (heads + 2 * copies) * dim,
  };
  const gated = even(2 * intermediate, n, intermediate);
  const inner = even(intermediate, n);
  const chain = [
    ["qkv", x, qkv],
    ["attention", qkv, headed],
    ["out", headed, x],
    ["add + norm", x, x],
    ["up", x, gated],
    ["activation", gated, inner],
    ["down", inner, x],
    ["add", x, x],
  ];
  const steps = [];
  for (const [name, into, outof] of chain) {
    steps.push(makeStep(name, chosen[name] || null, into, outof, steps[steps.length - 1], { tokens, itemsize, n }));
  }
  const forced = steps.filter((step) => step.collective);
  const sum = (key) => steps.reduce((total, step) => total + step[key], 0);
  const byHeads = steps[1].input === "split";
  const kvHeadsPerRank = byHeads ? most : kvHeads;
  return {
    choices: [...choices],
    steps,
    forced,
    n,
    summary: summary(forced),
    payload: sum("payload"),
    sent: sum("sent"),
    weights: sum("weights"),
    kvHeadsPerRank,
    kvBytesPerToken: 2 * kvHeadsPerRank * dim * itemsize,
    copied: byHeads && choices[0] === "column" && most * n > kvHeads,
    allCut: !choices.includes("replicated"),
  };
}

// Time of the collectives as rings, one after another, in us: 2(n-1) or n-1 messages each, and the bytes sent.
export function timeUs(plan, alphaUs, betaGBps) {
  const steps = (kind) => (kind === "all-reduce" ? 2 : 1) * (plan.n - 1);
  return plan.forced.reduce((us, step) => us + steps(step.collective) * alphaUs + step.sent / (betaGBps * 1e3), 0);
}

// The cheapest painting that cuts all four matrices: fewest bytes, then fewest collectives; null where none can be.
export function cheapest(sizes) {
  let best = null;
  for (const choices of paintings().filter((each) => !each.includes("replicated"))) {
    const plan = tried(choices, sizes);
    if (plan && (!best || plan.sent < best.sent || (plan.sent === best.sent && plan.forced.length < best.forced.length)))
      best = plan;
  }
  return best;
}

function tried(choices, sizes) {
  try {
    return planBlock(choices, sizes);
  } catch {
    return null;
  }
}

function summary(forced) {
  const kinds = ["all-reduce", "all-gather", "reduce-scatter"];
  const counted = kinds.map((kind) => [kind, forced.filter((step) => step.collective === kind).length]);
  const words = counted.filter(([, count]) => count).map(([kind, count]) => `${count} ${kind}${count > 1 ? "s" : ""}`);
  return words.join(", ") || "no collectives";
}

function even(features, n, units = features) {
  const splits = units % n === 0;
  return { full: features, most: splits ? features / n : null, total: splits ? features : null };
}

function makeStep(name, choice, into, outof, before, { tokens, itemsize, n }) {
  const arrives = before ? before.output : "replicated";
  let options = TAKES[choice || name].map((layout) => [layout, convert(arrives, layout, into, tokens * itemsize, n)]);
  if (n === 1) options = [["replicated", { conversion: null, payload: 0, sent: 0 }]];
  options = options.filter(([, found]) => found);
  options.sort(([, a], [, b]) => (a.conversion !== null) - (b.conversion !== null) || a.sent - b.sent);
  const [input, { conversion, payload, sent }] = options[0];
  const output = choice === null || n === 1 ? input : GIVES[choice];
  const onRank = (width, layout) => (layout === "split" ? width.most : width.full);
  return {
    name,
    choice,
    arrives,
    conversion,
    collective: conversion === "slice" ? null : conversion,
    input,
    output,
    inFeatures: into.full,
    outFeatures: outof.full,
    payload,
    sent,
    weights: choice === null ? 0 : itemsize * onRank(into, input) * onRank(outof, output),
    why: conversion === null ? "" : why(name, choice, conversion, into, before),
  };
}

function convert(arrives, wanted, width, bytesPerFeature, n) {
  if (arrives === wanted) return { conversion: null, payload: 0, sent: 0 };
  if (wanted === "split" && width.total === null) return null;
  const conversion = CONVERSIONS[arrives][wanted];
  if (conversion === "slice") return { conversion, payload: 0, sent: 0 };
  const features = conversion === "reduce-scatter" && width.total !== null ? width.total : width.full;
  const payload = features * bytesPerFeature;
  return { conversion, payload, sent: ((conversion === "all-reduce" ? 2 : 1) * (n - 1) * payload) / n };
}

function why(name, choice, conversion, width, before) {
  const maker = before ? before.name : "";
  if (conversion === "slice")
    return `${name} is split by row and takes only its slice of the input, which every rank has: free.`;
  if (conversion === "all-gather") {
    if (choice === null)
      return `${maker} is split by column, so each rank has some of the features, but ${NEEDS[name]} needs all.`;
    const asks = choice === "column" ? "split by column" : "replicated";
    return `${maker} left each rank with its own features, but ${name} is ${asks} and multiplies all of them.`;
  }
  if (conversion === "reduce-scatter") {
    const by = name === "attention" ? "head by head" : "feature by feature";
    return (
      `${maker} is split by row, so each rank has a partial sum, which ${NEEDS[name]} cannot take; it works ` +
      `${by}, so each rank sums only its own, at half the price of an all-reduce.`
    );
  }
  const partial = `${maker} is split by row, so each rank has a partial sum`;
  if (name === "attention" || name === "activation") {
    const units = name === "attention" ? "heads" : "features";
    const cause =
      width.total === null
        ? `the ${units} do not divide by the ranks`
        : "sums by head cost more with key-value heads copied";
    return `${partial}, which ${NEEDS[name]} cannot take; ${cause}, so every rank gets the whole sum.`;
  }
  return `${partial}, but ${NEEDS[name]} needs the whole sum on every rank.`;
}

function checkDivides(chosen, sizes) {
  const inner = { qkv: "num_heads", out: "num_heads", up: "intermediate", down: "intermediate" };
  const words = { num_heads: "query heads", intermediate: "features inside the MLP", hidden: "hidden features" };
  MATRICES.forEach((name, at) => {
    const what = chosen[name] === CANONICAL[at] ? inner[name] : "hidden";
    if (chosen[name] === "replicated" || sizes[what] % sizes.n === 0) return;
    const count = sizes[what].toLocaleString("en");
    throw new Error(
      `${count} ${words[what]} do not divide by ${sizes.n} ranks, and ${name} by ${chosen[name]} needs it: ` +
        `choose another number of ranks, or make ${name} replicated.`,
    );
  });
}
