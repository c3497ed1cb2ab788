// The links that hold a layout up on given GPUs: what tplab.topology.placement_of and group_links say, in the browser.
// A machine is { perNode, nodes, what, links: [{ kind, label, GBps, us, peer }], pairs, network }: `pairs` has the
// index into `links` of each pair of a node, row by row; `network` the one between nodes, or -1.

const EXACT_UP_TO = 8; // GPUs of a group for which the best ring is looked for, as in Python

/** Index of the link between two GPUs, numbered over all nodes. */
export function linkBetween(machine, a, b) {
  const { perNode } = machine;
  if (Math.floor(a / perNode) !== Math.floor(b / perNode)) return machine.network;
  return machine.pairs[(a % perNode) * perNode + (b % perNode)];
}

/** Below 0 if link `a` is slower than `b`: less bandwidth, or as much and a longer latency. */
export function compareLinks(machine, a, b) {
  const [one, other] = [machine.links[a], machine.links[b]];
  return one.GBps - other.GBps || other.us - one.us;
}

function slowestOf(machine, found) {
  const given = found.filter((link) => link >= 0);
  return given.length ? given.reduce((a, b) => (compareLinks(machine, b, a) < 0 ? b : a)) : -1;
}

function pairsOf(gpus) {
  return gpus.flatMap((a, i) => gpus.slice(i + 1).map((b) => [a, b]));
}

/** The ring through GPUs of a node whose slowest link is fastest: that link, and the steps that take it. */
function bestRing(machine, gpus) {
  if (gpus.length < 2) return { link: -1, steps: [] };
  const pairs = pairsOf(gpus);
  const kinds = [...new Set(pairs.map(([a, b]) => linkBetween(machine, a, b)))];
  kinds.sort((a, b) => compareLinks(machine, b, a));
  let ring = gpus;
  if (gpus.length > 3 && kinds.length > 1 && gpus.length <= EXACT_UP_TO) {
    for (const least of kinds) {
      const found = ringOver(gpus, (a, b) => compareLinks(machine, linkBetween(machine, a, b), least) >= 0);
      if (found) {
        ring = found;
        break;
      }
    }
  }
  const steps = gpus.length > 2 ? ring.map((a, i) => [a, ring[(i + 1) % ring.length]]) : pairs;
  const link = slowestOf(machine, steps.map(([a, b]) => linkBetween(machine, a, b)));
  return { link, steps: steps.filter(([a, b]) => compareLinks(machine, linkBetween(machine, a, b), link) === 0) };
}

/** A ring through all of `gpus` of allowed steps only, or null. */
function ringOver(gpus, allowed) {
  const path = [gpus[0]];
  const free = new Set(gpus.slice(1));
  const go = () => {
    const last = path[path.length - 1];
    if (!free.size) return allowed(last, path[0]);
    for (const gpu of [...free]) {
      if (!allowed(last, gpu)) continue;
      free.delete(gpu);
      path.push(gpu);
      if (go()) return true;
      path.pop();
      free.add(gpu);
    }
    return false;
  };
  return go() ? path : null;
}

function ordersOf(gpus) {
  if (gpus.length > 4) return [gpus, [...gpus].reverse()];
  if (gpus.length < 2) return [gpus];
  return gpus.flatMap((gpu, i) => ordersOf([...gpus.slice(0, i), ...gpus.slice(i + 1)]).map((rest) => [gpu, ...rest]));
}

/** `after` in the order that faces `before` over the fastest links; the slowest of these, and who sends over it. */
function facing(machine, before, after) {
  let best = null;
  for (const order of ordersOf(after)) {
    const link = slowestOf(machine, before.map((gpu, i) => linkBetween(machine, gpu, order[i])));
    if (!best || compareLinks(machine, link, best.link) > 0) best = { link, order };
  }
  const pairs = before.map((gpu, i) => [gpu, best.order[i]]);
  best.steps = pairs.filter(([a, b]) => compareLinks(machine, linkBetween(machine, a, b), best.link) === 0);
  return best;
}

/** What one group has: its best ring inside nodes, the nodes it counts for, whether all pairs are joined directly. */
export function groupLinks(machine, gpus) {
  const { perNode } = machine;
  const parts = Object.values(Object.groupBy(gpus, (gpu) => Math.floor(gpu / perNode)));
  const rings = parts.map((part) => bestRing(machine, part));
  const nodes = parts.length > 1 ? Math.ceil(gpus.length / Math.min(...parts.map((part) => part.length))) : 1;
  const inside = slowestOf(machine, rings.map((ring) => ring.link));
  const peers = (gpu) => gpus.some((other) => other !== gpu && machine.links[linkBetween(machine, gpu, other)].peer);
  const crossing = parts.slice(1).map((part, i) => [parts[i][0], part[0]]);
  return {
    gpus,
    ring: inside < 0 && nodes > 1 ? machine.network : inside,
    binding: nodes > 1 ? machine.network : inside,
    steps: nodes > 1 ? crossing : rings.flatMap((ring) => ring.steps),
    direct: nodes === 1 && gpus.length > 1 && pairsOf(gpus).every(([a, b]) => machine.links[linkBetween(machine, a, b)].peer),
    bridged: gpus.every(peers),
    nodes,
  };
}

/** The links that hold up replicas of stages of GPUs: by group, by hop, and the worst of all, with their key. */
export function layoutLinks(machine, chains) {
  const groups = chains.map((chain) => chain.map((gpus) => groupLinks(machine, gpus)));
  const hops = chains.map((chain) => {
    let before = chain[0];
    return chain.slice(1).map((after) => {
      const found = facing(machine, before, after);
      before = found.order;
      return found;
    });
  });
  const all = groups.flat();
  const rings = all.filter((group) => group.ring >= 0 && !(group.nodes > 1 && group.ring === machine.network));
  const nodes = Math.max(...all.map((group) => group.nodes));
  let ring = slowestOf(machine, rings.map((group) => group.ring));
  if (ring < 0 && nodes > 1) ring = machine.network;
  const worst = {
    ring,
    direct: all.every((group) => group.direct),
    bridged: ring >= 0 && !machine.links[ring].peer && all.every((group) => group.bridged),
    nodes,
    hop: slowestOf(machine, hops.flat().map((hop) => hop.link)),
  };
  return { groups, hops, worst, key: keyOf(machine, worst) };
}

/** The key of a table of prices: the links by their indices. */
export function keyOf(machine, { ring, direct, bridged, nodes, hop }) {
  const over = ring >= 0 && !machine.links[ring].peer && bridged;
  return [ring, direct ? 1 : 0, over ? 1 : 0, nodes, hop].join("|");
}
