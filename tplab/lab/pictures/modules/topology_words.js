// What an arrangement of GPUs is called, what it lacks, and what a change of it did, in words.

import { bytesText, number, timeText } from "./common.js";
import { keyOf, layoutLinks } from "./topology_links.js";

/** `NV2, 50 GB/s`. */
export function linkName({ kind, label, GBps }) {
  const name = kind === "network" ? "network" : label || kind;
  return `${name}, ${number(GBps)} GB/s`;
}

/** `group 3 (copy 1, stage 1)`. */
export function groupName({ pp, replicas }, group) {
  const parts = [...(replicas > 1 ? [`copy ${Math.floor(group / pp)}`] : []), ...(pp > 1 ? [`stage ${group % pp}`] : [])];
  return `group ${group}${parts.length ? ` (${parts.join(", ")})` : ""}`;
}

/** `[replica][stage]`: GPUs of each group, from the group of each GPU. */
export function chainsOf({ pp, replicas }, groups) {
  const members = (group) => groups.flatMap((each, gpu) => (each === group ? [gpu] : []));
  return [...Array(replicas).keys()].map((copy) => [...Array(pp).keys()].map((stage) => members(copy * pp + stage)));
}

/** What every group has too many of, or needs; empty if nothing. */
export function faultsOf(layout, groups, what) {
  const { tp, pp, replicas } = layout;
  const gpus = (n) => `${n === 1 ? `one ${what}` : `${n} ${what}s`}`;
  return [...Array(pp * replicas).keys()].flatMap((group) => {
    const more = groups.filter((each) => each === group).length - tp;
    if (!more) return [];
    return [more < 0 ? `group ${group} needs ${gpus(-more)} more` : `group ${group} has ${gpus(more)} too many`];
  });
}

export function swapped(groups, a, b) {
  const made = [...groups];
  [made[a], made[b]] = [made[b], made[a]];
  return made;
}

/** The row of the table of prices for these links, or null: `{ tpot_ms, tokens_per_s, all_reduce_ms, hops_ms, all_reduce_us }`. */
export function priceOf(prices, links) {
  const row = prices.exact?.[links.groups.flat().map((group) => group.gpus.join(",")).join(";")] ?? prices.rows?.[links.key];
  if (!row) return null;
  const [tpot_ms, tokens_per_s, all_reduce_ms, hops_ms, all_reduce_us] = row;
  return { tpot_ms, tokens_per_s, all_reduce_ms, hops_ms, all_reduce_us };
}

/** Time of one all-reduce of a group, or null. */
export function microseconds(machine, prices, group, hop) {
  const row = prices.rows?.[keyOf(machine, { ...group, hop })];
  return row ? row[4] : null;
}

/**
 * The smallest step to groups of the right sizes, where they are not: of those that have too many (or of the idle), to
 * one that needs some, or to the idle; among these the one that a token takes the least time with. `{ groups, words }`, or null.
 */
export function finish(machine, layout, groups, prices) {
  const { tp, pp, replicas } = layout;
  const all = [...Array(pp * replicas).keys()];
  const size = (group) => groups.filter((each) => each === group).length;
  const need = all.find((group) => size(group) < tp) ?? -1; // too many, and nobody lacks one: to the idle
  const givers = [-1, ...all].filter((group) => (group < 0 ? size(-1) : size(group) > tp));
  const full = givers.filter((group) => group >= 0);
  const from = full.length ? full : givers;
  let best = null;
  groups.forEach((group, gpu) => {
    if (!from.includes(group)) return;
    const made = groups.map((each, other) => (other === gpu ? need : each));
    const done = !faultsOf(layout, made, machine.what).length;
    const price = done ? priceOf(prices, layoutLinks(machine, chainsOf(layout, made))) : null;
    const cost = price ? price.tpot_ms : Infinity;
    if (!best || cost < best.cost) best = { cost, groups: made, words: need < 0 ? `Leave ${machine.what} ${gpu} idle` : `Move ${machine.what} ${gpu} to group ${need}` };
  });
  return best;
}

const ACROSS = { sys: "crosses from socket to socket", network: "spans nodes" };

/** What became of a group, or of the hops, by a change from `before` to `after`: `{ groups, links }` each. */
export function changeInWords(machine, prices, layout, before, after) {
  if (!after.links) return "";
  const moved = after.groups.flatMap((group, gpu) => (group !== before.groups[gpu] ? [gpu] : []));
  const old = before.links?.groups.flat() ?? [];
  const told = after.links.groups.flat().map((group, index) => {
    const us = microseconds(machine, prices, group, after.links.worst.hop);
    const was = old[index] ? microseconds(machine, prices, old[index], before.links.worst.hop) : null;
    return { group, index, us, was, by: us && was ? Math.abs(Math.log(us / was)) : 0 };
  });
  const most = told.reduce((a, b) => (b.by > a.by ? b : a));
  const price = priceOf(prices, after.links);
  const priceWas = before.links && priceOf(prices, before.links);
  const words = [];
  if (most.by > 1e-3) {
    const link = machine.links[most.group.binding];
    const slower = most.us > most.was;
    const way = slower && ACROSS[link.kind] ? `now ${ACROSS[link.kind]} (${linkName(link)})` : `is ${slower ? "held up by" : "back on"} ${linkName(link)}`;
    words.push(`Group ${most.index} (${machine.what}s ${most.group.gpus.join(", ")}) ${way}: its all-reduce of ${bytesText(prices.nbytes)} takes ${timeText(most.was)} → ${timeText(most.us)}.`);
  } else if (moved.length && before.links) words.push("No group's slowest link changed.");
  const [hop, hopWas] = [after.links.worst.hop, before.links?.worst.hop ?? -1];
  if (hop >= 0 && hopWas >= 0 && hop !== hopWas) words.push(`The slowest hop between stages is now ${linkName(machine.links[hop])}.`);
  if (price && priceWas && Math.abs(price.tpot_ms / priceWas.tpot_ms - 1) > 5e-4) {
    words.push(`A token takes ${timeText(1e3 * priceWas.tpot_ms)} → ${timeText(1e3 * price.tpot_ms)}, ${number(priceWas.tokens_per_s)} → ${number(price.tokens_per_s)} tokens/s.`);
  } else if (price && !priceWas) words.push(`A token takes ${timeText(1e3 * price.tpot_ms)}.`);
  return words.join(" ");
}
