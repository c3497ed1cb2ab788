// Where the parts of a machine are drawn: GPUs, switches, sockets, network cards, and the lines between them. Pure:
// from a machine (see topology_links.js) and a width in pixels to places in pixels.

import { linkBetween, compareLinks } from "./topology_links.js";

const PAD = 12;
const BAR = 24; // height of a switch, a socket, a network
const STUB = 30; // length of the line from a GPU to its bar

/** How the GPUs of a node are joined: "switch", "cube" (DGX-1), "mesh", or "sockets" with or without bridges. */
export function structureOf(machine) {
  const { perNode } = machine;
  const gpus = [...Array(perNode).keys()];
  const kind = (a, b) => machine.links[linkBetween(machine, a, b)].kind;
  const peer = (a, b) => a !== b && machine.links[linkBetween(machine, a, b)].peer;
  if (perNode > 1 && gpus.every((a) => gpus.every((b) => a === b || kind(a, b) === "nvswitch"))) return "switch";
  const degree = gpus.map((a) => gpus.filter((b) => peer(a, b)).length);
  if (Math.max(...degree) < 2) return "sockets";
  const halves = socketsOf(machine);
  const whole = (half) => half.length === 4 && half.every((a) => half.every((b) => a === b || peer(a, b)));
  if (perNode === 8 && halves.length === 2 && halves.every(whole) && degree.every((d) => d === 4)) return "cube";
  return "mesh";
}

/** GPUs of a node by socket: apart where they reach each other between sockets only. */
export function socketsOf(machine) {
  const far = (a, b) => machine.links[linkBetween(machine, a, b)].kind === "sys";
  const near = (a, b) => ["pix", "pxb", "phb", "node"].includes(machine.links[linkBetween(machine, a, b)].kind);
  const sockets = [];
  for (let gpu = 0; gpu < machine.perNode; gpu++) {
    const home = sockets.find((socket) => socket.some((other) => near(gpu, other)));
    const open = home ?? sockets.find((socket) => socket.every((other) => !far(gpu, other)));
    if (open) open.push(gpu);
    else sockets.push([gpu]);
  }
  return sockets;
}

/** Width of a line in pixels by its bandwidth: as the square root, so that wide ones stay on the page. */
export const lineWidth = (GBps) => Math.min(15, Math.max(1.4, Math.sqrt(GBps) / 2));

/**
 * Places for a page `width` pixels wide: `{ width, height, chip: { w, h }, gpus: [{ x, y }], lines, bars, boxes, route }`.
 * Lines are `{ points, link, ends, quiet }`; bars and boxes `{ x, y, w, h, text, kind }`; `route(a, b)` the way between two GPUs.
 */
export function placesOf(machine, width) {
  const structure = structureOf(machine);
  const tight = machine.perNode > 16 || (width < 420 && structure !== "sockets" && machine.perNode > 6);
  const chip = tight ? { w: 36, h: 30, gap: 7 } : { w: 62, h: 42, gap: 14 };
  const least = structure === "cube" || structure === "mesh" ? 300 : 4 * (chip.w + chip.gap) + 2 * PAD;
  const columns = [4, 3, 2, 1].find((n) => n <= machine.nodes && (n === 1 || (width - (n - 1) * 16) / n >= least));
  const each = Math.floor((width - (columns - 1) * 16 - (machine.nodes > columns ? 14 : 0)) / columns);
  const node = { switch: switchNode, cube: cubeNode, mesh: meshNode, sockets: socketsNode }[structure](machine, each, chip);
  const several = machine.nodes > 1;
  const made = { width, chip, gpus: [], lines: [], bars: [], boxes: [] };
  const rows = Math.ceil(machine.nodes / columns);
  const left = rows > 1 ? 14 : 0;
  const high = node.height + (several ? 20 + 22 + 26 + BAR + 16 : 0);
  const nets = [];
  for (let number = 0; number < machine.nodes; number++) {
    const [column, row] = [number % columns, Math.floor(number / columns)];
    const [dx, dy] = [left + column * (each + 16), row * high + (several ? 20 : 0)];
    const shift = ([x, y]) => [x + dx, y + dy];
    made.gpus.push(...node.gpus.map(({ x, y }) => ({ x: x + dx, y: y + dy })));
    made.lines.push(...node.lines.map((line) => ({ ...line, points: line.points.map(shift) })));
    for (const kind of ["bars", "boxes"]) made[kind].push(...node[kind].map((box) => ({ ...box, x: box.x + dx, y: box.y + dy })));
    if (!several) continue;
    made.boxes.push({ x: dx, y: dy - 16, w: each, h: node.height + 16, text: `node ${number}`, kind: "node" });
    const card = [dx + each / 2, dy + node.height + 10];
    const net = [card[0], card[1] + 22 + 26];
    const cards = machine.nics ? `${machine.nics} network card${machine.nics > 1 ? "s" : ""}` : "network";
    made.bars.push({ x: card[0] - 66, y: card[1], w: 132, h: 22, text: cards, kind: "nic" });
    made.lines.push({ points: [shift(node.hub), card], link: machine.network }, { points: [[card[0], card[1] + 22], net], link: machine.network });
    nets.push([shift(node.hub), card, net]);
  }
  if (several) drawNetwork(machine, made, { rows, columns, high, left, each, nodeHeight: node.height });
  made.height = several ? rows * high : node.height;
  const nodeOf = (gpu) => Math.floor(gpu / machine.perNode);
  const moved = (gpu, points) => {
    const [at, home] = [made.gpus[gpu], node.gpus[gpu % machine.perNode]];
    return points.map(([x, y]) => [x + at.x - home.x, y + at.y - home.y]);
  };
  made.route = (a, b) => {
    const [m, n] = [nodeOf(a), nodeOf(b)];
    const [i, j] = [a % machine.perNode, b % machine.perNode];
    if (m === n) return moved(a, node.route(i, j));
    const over = rows > 1 && Math.floor(m / columns) !== Math.floor(n / columns) ? [[5, nets[m][2][1] + BAR / 2], [5, nets[n][2][1] + BAR / 2]] : [];
    return [...moved(a, node.down(i)), ...nets[m], ...over, ...[...nets[n]].reverse(), ...moved(b, node.down(j)).reverse()];
  };
  return made;
}

function drawNetwork(machine, made, { rows, columns, high, left, each, nodeHeight }) {
  const { GBps, label } = machine.links[machine.network];
  const text = `network, ${Number(GBps.toPrecision(3))} GB/s per ${machine.what}${label ? ` (${label})` : ""}`;
  const right = left + Math.min(columns, machine.nodes) * (each + 16) - 16;
  for (let row = 0; row < rows; row++) {
    const y = row * high + 20 + nodeHeight + 10 + 22 + 26;
    made.bars.push({ x: left, y, w: right - left, h: BAR, text, kind: "network" });
    const next = y + high;
    if (row + 1 < rows) made.lines.push({ points: [[left, y + 12], [5, y + 12], [5, next + 12], [left, next + 12]], link: machine.network });
  }
}

const fastest = (machine, gpu, wanted) => {
  const links = [...Array(machine.perNode).keys()].filter((other) => other !== gpu).map((other) => linkBetween(machine, gpu, other));
  return links.filter((link) => wanted(machine.links[link])).sort((a, b) => compareLinks(machine, b, a))[0] ?? -1;
};

/** GPUs in rows. Returns their centres and the height. */
function inRows(count, width, chip, columns) {
  const used = Math.min(columns, count);
  const start = (width - used * (chip.w + chip.gap) + chip.gap) / 2 + chip.w / 2;
  return [...Array(count).keys()].map((i) => ({ x: start + (i % columns) * (chip.w + chip.gap), row: Math.floor(i / columns) }));
}

function switchNode(machine, width, chip) {
  const n = machine.perNode;
  const room = Math.max(1, Math.floor((width - 2 * PAD - 14 + chip.gap) / (chip.w + chip.gap)));
  const columns = Math.min(n < 3 ? n : Math.ceil(n / 2), room, 18);
  const cells = inRows(n, width, chip, columns);
  const rows = cells[n - 1].row + 1;
  const above = Math.ceil(rows / 2);
  const folded = rows > 2;
  const pitch = chip.h + (folded ? 20 : STUB);
  const top = 8;
  const barY = top + above * pitch;
  const link = fastest(machine, 0, () => true);
  const rowY = (row) => (row < above ? top + row * pitch + chip.h / 2 : barY + BAR + (row - above) * pitch + pitch - chip.h / 2);
  const rail = (row) => (row < above ? rowY(row) + chip.h / 2 + 9 : rowY(row) - chip.h / 2 - 9);
  const gpus = cells.map(({ x, row }) => ({ x, y: rowY(row) }));
  const spine = 7;
  const edge = (row) => (row < above ? barY : barY + BAR);
  const down = (gpu) => {
    const { x, row } = cells[gpu];
    if (!folded) return [[x, rowY(row)], [x, edge(row)]];
    return [[x, rowY(row)], [x, rail(row)], [spine, rail(row)], [spine, edge(row)]];
  };
  const lines = cells.map(({ x, row }) => ({ points: [[x, rowY(row)], [x, folded ? rail(row) : edge(row)]], link }));
  for (let row = 0; folded && row < rows; row++) {
    const last = cells.filter((cell) => cell.row === row).at(-1);
    lines.push({ points: [[last.x, rail(row)], [spine, rail(row)], [spine, edge(row)]], link, quiet: true });
  }
  const { label, GBps } = machine.links[link];
  const text = `NVSwitch: ${label}, ${Number(GBps.toPrecision(3))} GB/s each`;
  const bars = [{ x: 2, y: barY, w: width - 4, h: BAR, text, kind: "nvswitch" }];
  const route = (a, b) => [...down(a), ...down(b).reverse()];
  return { gpus, lines, bars, boxes: [], down, route, hub: [width / 2, barY + BAR / 2], height: top + rows * pitch + BAR + 8 };
}

function cubeNode(machine, width, chip) {
  const [front, far] = socketsOf(machine);
  const peer = (a, b) => a !== b && machine.links[linkBetween(machine, a, b)].peer;
  const partner = (a) => far.find((b) => peer(a, b));
  const side = Math.min(240, (width - chip.w - 24) / 1.52);
  const [dx, dy] = [side * 0.52, side * 0.18]; // so that no diagonal of one face runs through a GPU of the other
  const left = Math.max(chip.w / 2 + 8, (width - side - dx) / 2);
  const gpus = [];
  front.forEach((gpu, i) => {
    const [x, y] = [left + (i % 2) * side, chip.h / 2 + 10 + dy + Math.floor(i / 2) * side];
    gpus[gpu] = { x, y };
    gpus[partner(gpu)] = { x: x + dx, y: y - dy };
  });
  const height = side + dy + chip.h + 22;
  return straight(machine, gpus, width, height);
}

function meshNode(machine, width, chip) {
  const n = machine.perNode;
  const radius = Math.max(60, Math.min(width / 2 - chip.w / 2 - 8, 60 + n * 16));
  const turn = (i) => ((i + 0.5) / n) * 2 * Math.PI - Math.PI / 2;
  const flat = 0.8;
  const gpus = [...Array(n).keys()].map((i) => ({ x: width / 2 + radius * Math.cos(turn(i)), y: chip.h / 2 + 8 + radius * flat * (1 + Math.sin(turn(i))) }));
  return straight(machine, gpus, width, 2 * radius * flat + chip.h + 16);
}

/** A node whose direct links are straight lines. */
function straight(machine, gpus, width, height) {
  const lines = [];
  for (let a = 0; a < machine.perNode; a++) {
    for (let b = a + 1; b < machine.perNode; b++) {
      const link = linkBetween(machine, a, b);
      if (machine.links[link].peer) lines.push({ points: [centre(gpus[a]), centre(gpus[b])], link, ends: [a, b] });
    }
  }
  const hub = [width / 2, height - 4];
  const down = (gpu) => [centre(gpus[gpu]), hub];
  return { gpus, lines, bars: [], boxes: [], down, route: (a, b) => [centre(gpus[a]), centre(gpus[b])], hub, height };
}

const centre = ({ x, y }) => [x, y];

function socketsNode(machine, width, chip) {
  const sockets = socketsOf(machine).map((socket) => bridgedTogether(machine, socket));
  const need = (socket) => Math.min(socket.length, 4) * (chip.w + chip.gap) + 2 * PAD;
  const beside = sockets.length > 1 && sockets.reduce((sum, socket) => sum + need(socket), (sockets.length - 1) * 54) <= width;
  const each = beside ? (width - (sockets.length - 1) * 54) / sockets.length : width - (sockets.length > 1 ? 26 : 0);
  const made = { gpus: [], lines: [], bars: [], boxes: [] };
  const ways = [];
  let y = 0;
  let height = 0;
  const bars = sockets.map((socket, number) => {
    const x = beside ? number * (each + 54) : 0;
    const bottom = socketBlock(machine, made, ways, socket, { x, y, width: each, chip, number, sockets: sockets.length });
    height = Math.max(height, bottom + PAD);
    const bar = { x, y: bottom - BAR, w: each };
    if (!beside) y = bottom + PAD + 16;
    return bar;
  });
  const between = bars.slice(1).map((bar, i) => {
    const link = linkBetween(machine, sockets[i][0], sockets[i + 1][0]);
    const [from, to] = beside
      ? [[bars[i].x + each - PAD, bars[i].y + BAR / 2], [bar.x + PAD, bar.y + BAR / 2]]
      : [[each + 14, bars[i].y + BAR / 2], [each + 14, bar.y + BAR / 2]];
    const points = beside ? [from, to] : [[each - PAD, from[1]], from, to, [each - PAD, to[1]]];
    made.lines.push({ points, link });
    return points;
  });
  for (let a = 0; a < machine.perNode; a++) {
    for (let b = a + 1; b < machine.perNode; b++) {
      const link = linkBetween(machine, a, b);
      if (machine.links[link].peer) made.lines.push({ points: bridge(made.gpus[a], made.gpus[b], chip), link, ends: [a, b] });
    }
  }
  const socketOf = (gpu) => sockets.findIndex((socket) => socket.includes(gpu));
  const route = (a, b) => {
    if (machine.links[linkBetween(machine, a, b)].peer) return bridge(made.gpus[a], made.gpus[b], chip);
    if (ways[a].switch && ways[a].switch === ways[b].switch) return [...ways[a].points.slice(0, 2), ...ways[b].points.slice(0, 2).reverse()];
    const [i, j] = [socketOf(a), socketOf(b)];
    const over = i === j ? [] : i < j ? between.slice(i, j).flat() : between.slice(j, i).flat().reverse();
    return [...ways[a].points, ...over, ...[...ways[b].points].reverse()];
  };
  const hub = [width / 2, beside ? bars[0].y + BAR / 2 : bars.at(-1).y + BAR / 2];
  return { ...made, down: (gpu) => [...ways[gpu].points, hub], route, hub, height };
}

/** A straight line between neighbours, over the heads of those between them otherwise. */
function bridge(a, b, chip) {
  const near = Math.abs(a.x - b.x) < 1.5 * (chip.w + chip.gap) && Math.abs(a.y - b.y) < 2;
  if (near || Math.abs(a.y - b.y) > 2) return [[a.x, a.y], [b.x, b.y]];
  const over = a.y - chip.h / 2 - 9;
  return [[a.x, a.y], [a.x, over], [b.x, over], [b.x, b.y]];
}

/** GPUs of a socket so that bridged ones, then those behind one PCIe switch, are neighbours. */
function bridgedTogether(machine, socket) {
  const left = [...socket];
  const order = [];
  while (left.length) {
    const gpu = left.shift();
    order.push(gpu);
    const close = (kinds) => left.findIndex((other) => kinds.includes(machine.links[linkBetween(machine, gpu, other)].kind));
    const at = [close(["nvlink", "nvswitch", "xgmi"]), close(["pix"])].find((found) => found >= 0) ?? -1;
    if (at >= 0) left.unshift(...left.splice(at, 1));
  }
  return order;
}

function socketBlock(machine, made, ways, socket, { x, y, width, chip, number, sockets }) {
  const columns = Math.max(1, Math.min(socket.length, Math.floor((width - 2 * PAD + chip.gap) / (chip.w + chip.gap))));
  const cells = inRows(socket.length, width, chip, columns);
  const rows = cells.at(-1).row + 1;
  const bus = (gpu) => fastest(machine, gpu, (link) => !link.peer && link.kind !== "sys");
  const linkOf = (gpu) => (bus(gpu) >= 0 ? bus(gpu) : fastest(machine, gpu, (link) => !link.peer));
  const sameSwitch = (a, b) => machine.perNode > 1 && a !== b && machine.links[linkBetween(machine, a, b)].kind === "pix";
  const deep = socket.some((a) => socket.some((b) => sameSwitch(a, b))) ? 30 : 0;
  const pitch = chip.h + STUB + deep;
  const top = y + 18;
  const bottom = top + rows * pitch + BAR;
  const rail = (row) => top + (row + 1) * pitch;
  const side = x + width - 6;
  socket.forEach((gpu, i) => {
    const cell = { x: x + cells[i].x, y: top + cells[i].row * pitch + chip.h / 2 };
    made.gpus[gpu] = cell;
    const last = cells[i].row === rows - 1;
    const [end, link] = [rail(cells[i].row), linkOf(gpu)];
    const stub = [[cell.x, cell.y], [cell.x, end - (last ? 0 : 8)]];
    const points = last ? stub : [...stub, [side, end - 8], [side, bottom - BAR]];
    const mates = deep ? socket.filter((other, j) => cells[j].row === cells[i].row && (other === gpu || sameSwitch(gpu, other))) : [gpu];
    if (mates.length > 1) points.splice(1, 0, [cell.x, cell.y + chip.h / 2 + 24]);
    ways[gpu] = { points, switch: mates.length > 1 ? `${number}/${cells[i].row}/${Math.min(...mates)}` : "" };
    made.lines.push({ points: stub, link });
    if (!last && (i + 1 === socket.length || cells[i + 1].row !== cells[i].row || i % columns === 0)) {
      made.lines.push({ points: [[cell.x, end - 8], [side, end - 8], [side, bottom - BAR]], link, quiet: true });
    }
    if (mates.length > 1 && gpu === Math.min(...mates)) {
      const at = mates.map((mate) => x + cells[socket.indexOf(mate)].x);
      const [low, high] = [Math.min(...at) - chip.w / 2, Math.max(...at) + chip.w / 2];
      made.bars.push({ x: low, y: cell.y + chip.h / 2 + 14, w: high - low, h: 20, text: "PCIe switch", kind: "pcie" });
    }
  });
  const { kind } = machine.links[linkOf(socket[0])] ?? { kind: "" };
  const host = machine.what === "GPU" ? "links as measured" : "this computer's memory";
  const hub = { host, emulated: "declared links" }[kind] ?? (sockets > 1 ? `CPU socket ${number}` : "CPU and PCIe");
  made.boxes.push({ x, y: y + 2, w: width, h: bottom - y + PAD - 4, text: "", kind: "socket" });
  made.bars.push({ x: x + PAD, y: bottom - BAR, w: width - 2 * PAD, h: BAR, text: hub, kind: "socket" });
  return bottom;
}
