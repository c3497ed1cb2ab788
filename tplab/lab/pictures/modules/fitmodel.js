// What the fullest GPU of a layout holds, how many requests fit, and what would help: tplab/topology/advisor/memory.py in
// the browser, over numbers that Python counted for each model, degree and GPU. A browser test holds the two together.
// Bytes; `asked` is { model, gpu, weights, cache, tp, pp, batch, context }, `known` what the state carries.

const PAGE = 16; // tokens in a page of the cache
const MOST_TP = 8; // GPUs that share layers in a usual node
const PRECISIONS = ["bf16", "fp8", "int4"]; // fewer bits, step by step

// Why the model cannot be cut so, in a sentence; empty if it can.
export function whyNotCut(known, { model, tp, pp }) {
  const { name, layers, cuts } = known.models[model];
  if (!cuts[tp]) return `${name} cannot be shared by ${tp} GPUs: take TP ${either(Object.keys(cuts))}.`;
  return pp > layers ? `${name} has ${layers} layers: at most so many stages.` : "";
}

// The fullest rank with `requests` in flight: { weights, kv, activations, workspace, total, usable, free, stage, layers }.
export function fullestRank(known, asked, requests) {
  const { tp, pp } = asked;
  const model = known.models[asked.model];
  const gpu = known.gpus[asked.gpu];
  const cut = model.cuts[tp];
  const each = known.itemsize[asked.weights];
  const kept = requests * cachedTokens(model, asked.context);
  const workspace = known.runtime + gpu.collectives[Math.min(tp, 3) - 1][Math.min(pp, 2) - 1] + model.rotations;
  const stages = layersOfStage(model.layers, pp);
  const longest = stages.indexOf(Math.max(...stages));
  let fullest = null;
  for (const stage of new Set([0, longest, pp - 1])) {
    const last = stage === pp - 1;
    const ends = pp === 1 ? cut.both : stage === 0 ? cut.first : last ? cut.last : 0;
    const weights = stages[stage] * cut.matmul * each + (stages[stage] * cut.small + ends) * 2;
    const kv = kept * 2 * stages[stage] * cut.kv_heads * model.head_dim * known.itemsize[asked.cache];
    const activations = activationBytes(known, model, gpu, { tp, pp, last, each, cut });
    const total = weights + kv + activations + workspace;
    const usable = known.share * gpu.memory;
    const free = usable - total;
    const rank = { weights, kv, activations, workspace, total, usable, free, stage, layers: stages[stage] };
    if (!fullest || free < fullest.free) fullest = rank;
  }
  return fullest;
}

// Requests of full length that fit beside the weights; 0 where not even one does.
export function mostRequests(known, asked) {
  if (whyNotCut(known, asked)) return 0;
  // Doubled until it is too many, then halved: with more requests another rank may be the fullest.
  const empty = fullestRank(known, asked, 0).free;
  if (empty < 0) return 0;
  let [low, high] = [0, 1];
  while (fullestRank(known, asked, high).free >= 0 && high < 2 ** 30) [low, high] = [high, high * 2];
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (fullestRank(known, asked, middle).free >= 0) low = middle;
    else high = middle;
  }
  return low;
}

// The longest context with which the whole batch fits, in whole pages; 0 where none does.
export function longestContext(known, asked) {
  const fits = (pages) => fullestRank(known, { ...asked, context: pages * PAGE }, asked.batch).free >= 0;
  const limit = 2 ** 21 / PAGE;
  let [low, high] = [0, limit];
  if (fits(limit)) return limit * PAGE;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (fits(middle)) low = middle;
    else high = middle;
  }
  return low * PAGE;
}

// What would make it fit, each by itself, in the order of what it costs: [{ words, change }].
export function whatWouldHelp(known, asked) {
  const model = known.models[asked.model];
  const fits = (change) => {
    const wanted = { ...asked, ...change };
    return !whyNotCut(known, wanted) && fullestRank(known, wanted, wanted.batch).free >= 0;
  };
  const ways = [];
  const offer = (words, change) => change && ways.push({ words, change });
  const context = longestContext(known, asked);
  if (context) offer(`a context of at most ${context.toLocaleString("en")}`, { context });
  const most = mostRequests(known, asked);
  if (most) offer(most === 1 ? "a batch of 1" : `a batch of at most ${most.toLocaleString("en")}`, { batch: most });
  if (known.itemsize[asked.cache] > 1 && fits({ cache: "fp8" })) offer("the KV cache in fp8", { cache: "fp8" });
  const smaller = PRECISIONS.filter((each) => known.itemsize[each] < known.itemsize[asked.weights]);
  const precision = smaller.find((weights) => fits({ weights }));
  if (precision) offer(`weights in ${precision}`, { weights: precision });
  const degrees = Object.keys(model.cuts).map(Number).filter((each) => each > asked.tp && each <= MOST_TP);
  const tp = degrees.find((each) => fits({ tp: each }));
  if (tp) offer(`TP ${tp}`, { tp });
  const stages = Array.from({ length: 16 }, (_, at) => at + 1).filter((each) => each > asked.pp && each <= model.layers);
  const pp = stages.find((each) => fits({ pp: each }));
  if (pp) offer(`PP ${pp}`, { pp });
  const larger = known.offered.filter((each) => known.gpus[each].memory > known.gpus[asked.gpu].memory);
  larger.sort((a, b) => known.gpus[a].memory - known.gpus[b].memory);
  const gpu = larger.find((each) => fits({ gpu: each }));
  if (gpu) offer(known.gpus[gpu].name, { gpu });
  if (!tp && !pp) {
    const both = degrees.flatMap((t) => stages.map((p) => ({ tp: t, pp: p }))).sort((a, b) => a.tp * a.pp - b.tp * b.pp);
    const found = both.find(fits);
    if (found) offer(`TP ${found.tp} × PP ${found.pp}`, found);
  }
  return ways;
}

// Fewer GPUs that would hold it as well: the layout with the least of them, or null.
export function fewerGpus(known, asked) {
  const cuts = Object.keys(known.models[asked.model].cuts).map(Number);
  const smaller = [];
  for (const tp of cuts) for (let pp = 1; tp * pp < asked.tp * asked.pp; pp += 1) smaller.push({ tp, pp });
  smaller.sort((a, b) => a.tp * a.pp - b.tp * b.pp || a.pp - b.pp);
  const fits = (cut) => !whyNotCut(known, { ...asked, ...cut }) && fullestRank(known, { ...asked, ...cut }, asked.batch).free >= 0;
  return smaller.find(fits) ?? null;
}

// As even as possible, the longer ones in the middle.
export function layersOfStage(layers, pp) {
  const counts = Array(pp).fill(Math.floor(layers / pp));
  const fromMiddle = counts.map((_, stage) => stage);
  fromMiddle.sort((a, b) => Math.abs(2 * a - (pp - 1)) - Math.abs(2 * b - (pp - 1)) || b - a);
  for (const stage of fromMiddle.slice(0, layers % pp)) counts[stage] += 1;
  return counts;
}

// Tokens of cache that a request takes in an average layer: whole pages, no more than a windowed layer's window.
function cachedTokens({ window, windowed }, context) {
  const kept = window === null ? context : (1 - windowed) * context + windowed * Math.min(context, window);
  return Math.ceil(kept / PAGE) * PAGE;
}

// Largest activations alive at once, of the largest step that the engine tries when it starts.
function activationBytes(known, model, gpu, { tp, pp, last, each, cut }) {
  const attention = (2 * model.q_size) / tp + 2 * cut.kv_heads * model.head_dim;
  const mlp = (model.mlp_matrices * model.intermediate) / tp;
  const streams = 4 + (tp > 1) + 2 * (pp > 1);
  let inside = known.tokens * (streams * model.hidden + Math.max(attention, mlp)) * 2;
  if (each < 1) inside += (((model.mlp_matrices - 1) * model.hidden * model.intermediate) / tp) * 2;
  if (!last) return inside;
  const further = Math.max(0, gpu.sampled - known.usual_rows);
  const rows = model.vocab * (known.row_bytes * (gpu.sampled - further) + known.further_row_bytes * further);
  const gathered = tp > 1 ? Math.ceil(model.vocab / tp) * 2 * gpu.sampled : 0;
  return Math.max(inside, known.tokens * model.hidden * 2 + rows + gathered);
}

function either(words) {
  return words.length === 1 ? words[0] : `${words.slice(0, -1).join(", ")} or ${words[words.length - 1]}`;
}
