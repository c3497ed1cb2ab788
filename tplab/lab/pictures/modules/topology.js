// A machine as a drawing: chips, switches, links as wide as their bandwidth, the groups of a layout as hulls. A GPU is
// dragged (or sent by a key) into another group, and the prediction follows, out of a table that the state carries.

import { frame, holdsFocus, html, number, put, statusLine, svg, timeText } from "./common.js";
import { layoutLinks, linkBetween } from "./topology_links.js";
import { lineWidth, placesOf } from "./topology_places.js";
import { TOPOLOGY_CSS, GROUP_COLOURS } from "./topology_style.js";
import { chainsOf, changeInWords, faultsOf, finish, groupName, linkName, microseconds, priceOf, swapped } from "./topology_words.js";

const CLASS_OF = { nvswitch: "nv", nvlink: "nv", xgmi: "nv", pix: "pcie", pxb: "pcie", phb: "pcie", node: "pcie", sys: "sys", network: "net", host: "pcie", emulated: "pcie" };

export function render({ model, el }) {
  const root = frame(el, "a machine's links and the groups of a layout on it", TOPOLOGY_CSS);
  const title = html("div", { class: "heading" });
  const numbers = html("div", { class: "numbers" });
  const drawing = svg("svg", { class: "machine", role: "group", "aria-label": "GPUs and links", "data-lm-suppress-shortcuts": "true" });
  const legend = html("div", { class: "legend", role: "list", "aria-label": "widths of links" });
  const table = html("div", { class: "groups" });
  const said = statusLine();
  const help = html("div", { class: "help" });
  const offer = html("div", { class: "row offer" });
  const button = (text, onclick) => html("button", { type: "button", onclick }, text);
  const buttons = html("div", { class: "row" },
    button("Best placement", () => arrange(model.get("best"), "The best placement.")),
    button("In order of numbers", () => arrange(model.get("in_order"), "GPUs in the order of their numbers, as launchers take them.")),
    button("Reset", () => arrange(model.get("start"), "As it was at the start.")));
  root.append(title, numbers, said.element, offer, drawing, legend, table, buttons, help);

  let places = null;
  let chips = [];
  let held = -1; // the GPU that the keyboard has picked up
  let focused = 0;
  let now = null; // links of the present arrangement, or null where it is unfinished

  const machine = () => model.get("machine");
  const groups = () => model.get("groups");
  const shape = () => ({ tp: model.get("tp"), pp: model.get("pp"), replicas: model.get("replicas") });
  const one = (gpu) => `${machine().what} ${gpu}`;

  const howTo = () => {
    const { what } = machine();
    return `Drag a ${what} onto another one to swap them, or onto a group to move it there. By keyboard: arrows choose a ${what}, a digit sends it to that group, minus leaves it idle, Enter picks it up and swaps it with the next one.`;
  };

  function arrange(wanted, words) {
    const before = { groups: groups(), links: now };
    if (wanted.join() === before.groups.join()) {
      if (words) said.say(`${words} Nothing changed.`);
      return;
    }
    model.set("groups", [...wanted]);
    model.save_changes();
    draw();
    const after = { groups: wanted, links: now };
    if (!now) said.say(`The prediction follows as soon as every group has ${shape().tp}.`);
    else said.say([words, changeInWords(machine(), model.get("prices"), shape(), before, after)].filter(Boolean).join(" "));
  }

  function move(gpu, group) {
    const wanted = [...groups()];
    wanted[gpu] = group;
    arrange(wanted);
  }

  // --- what is drawn once for a machine and a width, and what follows the groups ---------------------------------

  function build() {
    const m = machine();
    // A notebook's cell has no width before it is shown.
    const width = Math.max(300, Math.min(Math.floor(root.clientWidth) || 760, 1080));
    places = placesOf(m, width);
    put(drawing, { viewBox: `0 0 ${places.width} ${Math.ceil(places.height)}` });
    drawing.style.maxWidth = `${places.width}px`;
    const { w, h } = places.chip;
    const layers = Object.fromEntries(["boxes", "hulls", "lines", "hops", "binding", "bars", "chips"].map((name) => [name, svg("g", { class: name })]));
    for (const box of places.boxes) {
      layers.boxes.append(svg("rect", { class: `box ${box.kind}`, x: box.x + 1, y: box.y, width: box.w - 2, height: box.h, rx: 8 }));
      layers.boxes.append(svg("text", { class: "small", x: box.x + 10, y: box.y + 13 }, box.text));
    }
    for (const line of places.lines) {
      if (line.link < 0) continue;
      const link = m.links[line.link];
      const about = svg("title", {}, `${line.ends ? `${one(line.ends[0])} and ${line.ends[1]}: ` : ""}${linkName(link)}, ${number(link.us)} µs`);
      const wide = line.quiet ? Math.min(5, lineWidth(link.GBps)) : lineWidth(link.GBps);
      const points = line.points.join(" ");
      layers.lines.append(svg("g", { class: `line ${CLASS_OF[link.kind]}` },
        svg("polyline", { class: "hit", points }), svg("polyline", { points, "stroke-width": wide }), about));
    }
    for (const bar of places.bars) {
      layers.bars.append(svg("g", {}, svg("rect", { class: `bar ${bar.kind}`, x: bar.x, y: bar.y, width: Math.max(bar.w, 4), height: bar.h, rx: 5 }),
        fitted(svg("text", { class: "small mid", x: bar.x + bar.w / 2, y: bar.y + bar.h / 2 + 4 }), bar.text, bar.w)));
    }
    chips = places.gpus.map((at, gpu) => {
      const small = w < 50;
      const name = small ? svg("text", { class: "mid strong", y: -1 }, gpu) : svg("text", { class: "mid strong", y: -4 }, one(gpu));
      const tag = svg("text", { class: "mid tag", y: small ? 11 : 12 });
      const chip = svg("g", { class: "chip", role: "button", "data-gpu": gpu, tabindex: gpu === focused ? 0 : -1, transform: `translate(${at.x} ${at.y})` },
        svg("rect", { class: "body", x: -w / 2, y: -h / 2, width: w, height: h, rx: 6 }), name, tag, svg("title", {}));
      layers.chips.append(chip);
      return chip;
    });
    const had = holdsFocus(drawing);
    drawing.replaceChildren(...Object.values(layers));
    if (had) chips[focused].focus({ preventScroll: true });
    const kinds = [...new Map(m.links.map((link) => [linkName(link), link])).values()].sort((a, b) => b.GBps - a.GBps).slice(0, 8);
    legend.replaceChildren(...kinds.map((link) => html("span", { role: "listitem" },
      svg("svg", { class: `line ${CLASS_OF[link.kind]}`, viewBox: "0 0 34 16", width: 34, height: 16, "aria-hidden": "true" },
        svg("line", { x1: 1, x2: 33, y1: 8, y2: 8, "stroke-width": lineWidth(link.GBps) })), ` ${linkName(link)}`)));
    draw();
  }

  /** A text no longer than its box: cut at a comma or a colon if it has to be. */
  function fitted(text, words, width) {
    const most = (width - 8) / 6.4;
    text.textContent = words.length <= most ? words : words.split(/[,:(]/)[0].slice(0, Math.max(1, Math.floor(most)));
    return text;
  }

  function draw() {
    if (!places || places.gpus.length !== groups().length) return; // of another machine, which is told of next
    const m = machine();
    const layout = shape();
    const faults = faultsOf(layout, groups(), m.what);
    now = faults.length || !layout.tp ? null : layoutLinks(m, chainsOf(layout, groups()));
    drawChips(m, layout);
    drawHulls(layout);
    drawBinding(m);
    const price = now && priceOf(model.get("prices"), now);
    drawNumbers(price, faults);
    drawTable(m, layout, price);
    offer.replaceChildren();
    const done = faults.length ? finish(m, layout, groups(), model.get("prices")) : null;
    if (done) offer.append(button(done.words, () => arrange(done.groups)));
    const result = { finished: !faults.length, faults, key: now?.key ?? "", ...(price ?? {}) };
    if (JSON.stringify(result) !== JSON.stringify(model.get("result"))) {
      model.set("result", result);
      model.save_changes();
    }
  }

  function drawChips(m, layout) {
    chips.forEach((chip, gpu) => {
      const group = groups()[gpu];
      const colour = group < 0 ? "var(--line)" : GROUP_COLOURS[group % GROUP_COLOURS.length];
      chip.style.setProperty("--group", colour);
      chip.querySelector(".tag").textContent = places.chip.w < 50 ? (group < 0 ? "idle" : `g${group}`) : group < 0 ? "idle" : `group ${group}`;
      const words = `${one(gpu)}, ${group < 0 ? "idle" : groupName(layout, group)}${gpu === held ? ", picked up" : ""}`;
      chip.querySelector("title").textContent = words;
      put(chip, { "aria-label": words, tabindex: gpu === focused ? 0 : -1, class: `chip${gpu === held ? " held" : ""}${group < 0 ? " idle" : ""}` });
    });
  }

  function drawHulls(layout) {
    const { w, h } = places.chip;
    const hulls = drawing.querySelector(".hulls");
    const made = [...Array(layout.pp * layout.replicas).keys()].map((group) => {
      const members = groups().flatMap((each, gpu) => (each === group ? [places.gpus[gpu]] : []));
      const hull = svg("g", { class: "hull", "data-group": group, style: `--group: ${GROUP_COLOURS[group % GROUP_COLOURS.length]}` });
      const [reached, left] = [members.slice(0, 1), members.slice(1)];
      while (left.length) { // the shortest way to connect them all
        let best = null;
        for (const a of reached) for (const b of left) {
          const far = Math.hypot(a.x - b.x, a.y - b.y);
          if (!best || far < best.far) best = { a, b, far };
        }
        left.splice(left.indexOf(best.b), 1);
        reached.push(best.b);
        const near = best.far < 1.6 * (w + 14);
        hull.append(svg("line", { x1: best.a.x, y1: best.a.y, x2: best.b.x, y2: best.b.y, "stroke-width": near ? h + 12 : 14 }));
      }
      const pad = w < 50 ? 3 : 7;
      for (const { x, y } of members) hull.append(svg("rect", { x: x - w / 2 - pad, y: y - h / 2 - pad, width: w + 2 * pad, height: h + 2 * pad, rx: 10 }));
      return hull;
    });
    hulls.replaceChildren(...made);
  }

  /** The ways that hold the layout up: those that are slower than the fastest link of the machine. */
  function drawBinding(m) {
    const top = Math.max(...m.links.filter((link) => link.kind !== "network").map((link) => link.GBps), 0);
    const slow = (link) => link >= 0 && m.links[link].GBps < 0.99 * top;
    const [ways, hops] = [[], []];
    if (now) {
      const over = now.worst.nodes > 1 ? m.network : now.worst.ring;
      for (const group of now.groups.flat()) {
        if (group.binding >= 0 && slow(group.binding) && m.links[group.binding].GBps === m.links[over].GBps) ways.push(...group.steps);
      }
      for (const hop of now.hops.flat()) hops.push({ steps: hop.steps, slow: slow(hop.link) });
    }
    drawing.querySelector(".binding").replaceChildren(...ways.slice(0, 40).map(([a, b]) => svg("polyline", { points: places.route(a, b).join(" ") })));
    const arrows = hops.slice(0, 24).map(({ steps: [[a, b]] }) => svg("polyline", { points: places.route(a, b).join(" ") }));
    drawing.querySelector(".hops").replaceChildren(...arrows);
  }

  function drawNumbers(price, faults) {
    title.replaceChildren(html("span", { class: "badge" }, model.get("badge")), ` ${model.get("heading")}`);
    const best = model.get("prices").best;
    if (faults.length) numbers.replaceChildren(html("b", { class: "fault" }, `Unfinished: ${faults.join(", ")}.`));
    else if (!price) numbers.replaceChildren(html("span", { class: "quiet" }, model.get("prices").why ?? "No prediction for this choice without a kernel."));
    else {
      const widest = Math.max(price.tpot_ms, best?.tpot_ms ?? 0);
      const bar = (name, each) => html("div", { class: "timebar", "aria-hidden": "true" }, html("span", { class: "name" }, name),
        ...[["rest", each.tpot_ms - each.all_reduce_ms - each.hops_ms], ["reduce", each.all_reduce_ms], ["hop", each.hops_ms]]
          .map(([kind, ms]) => html("i", { class: kind, style: `width:${(62 * ms) / widest}%` })),
        html("span", { class: "ms" }, timeText(1e3 * each.tpot_ms)));
      const slower = best ? price.tpot_ms / best.tpot_ms - 1 : 0;
      const aside = !best || Math.abs(slower) < 5e-4 ? "as good as the best placement"
        : `${number(100 * Math.abs(slower), 2)} % ${slower > 0 ? "longer" : "shorter"} per token than on the best placement${slower > 0 ? "" : " that was found"}`;
      numbers.replaceChildren(
        html("div", {}, html("b", {}, `${timeText(1e3 * price.tpot_ms)} per token, ${number(price.tokens_per_s)} tokens/s`), ` · ${aside}`),
        bar("here", price), ...(best ? [bar("best", best)] : []),
        html("div", { class: "key quiet" }, html("i", { class: "rest" }), " compute and the rest ", html("i", { class: "reduce" }), " all-reduces ", html("i", { class: "hop" }), " hops between stages"));
    }
    help.textContent = model.get("prices").why ? "" : model.get("about");
  }

  function drawTable(m, layout, price) {
    const count = layout.pp * layout.replicas;
    const rows = [...Array(count).keys()].map((group) => {
      const members = groups().flatMap((each, gpu) => (each === group ? [gpu] : []));
      const found = now?.groups[Math.floor(group / layout.pp)][group % layout.pp];
      const link = found && found.binding >= 0 ? m.links[found.binding] : null;
      const us = found && price && layout.tp > 1 ? microseconds(m, model.get("prices"), found, now.worst.hop) : null;
      const words = !found ? `${members.length} of ${layout.tp}` : link ? `${linkName(link)}${us === null ? "" : `, all-reduce ${timeText(us)}`}` : "no all-reduce";
      return html("div", { class: "group", "data-group": group, style: `--group: ${GROUP_COLOURS[group % GROUP_COLOURS.length]}` },
        html("i", {}), html("b", {}, groupName(layout, group)), html("span", {}, `${m.what}s ${members.join(", ") || "none"}`), html("span", { class: "quiet" }, words));
    });
    const idle = groups().flatMap((each, gpu) => (each < 0 ? [gpu] : []));
    if (idle.length) rows.push(html("div", { class: "group", "data-group": -1, style: "--group: var(--line)" }, html("i", {}), html("b", {}, "idle"), html("span", {}, `${m.what}s ${idle.join(", ")}`)));
    const more = rows.length - 12;
    table.replaceChildren(...rows.slice(0, 12), ...(more > 0 ? [html("span", { class: "quiet" }, `and ${more} more groups`)] : []));
  }

  // --- by hand --------------------------------------------------------------------------------------------------

  let drag = null;
  let request = 0;
  const place = (event) => {
    const box = drawing.getBoundingClientRect();
    const scale = places.width / box.width;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  };
  function under(event, gpu) {
    const stack = root.getRootNode().elementsFromPoint(event.clientX, event.clientY).filter((each) => root.contains(each));
    const chip = stack.map((each) => each.closest(".chip")).find((each) => each && Number(each.dataset.gpu) !== gpu);
    return chip ?? stack.map((each) => each.closest("[data-group]")).find(Boolean) ?? null;
  }
  drawing.addEventListener("pointerdown", (event) => {
    const chip = event.target.closest(".chip");
    if (!chip || event.button) return;
    event.preventDefault();
    const gpu = Number(chip.dataset.gpu);
    focus(gpu);
    drag = { gpu, chip, from: place(event), moved: false, target: null };
    chip.parentNode.append(chip); // above the others
    chip.classList.add("dragged");
    chip.focus({ preventScroll: true });
    chip.setPointerCapture(event.pointerId);
  });
  // A finger on a chip does not scroll the page. (`touch-action` is heeded on a whole drawing only, not on parts of it.)
  drawing.addEventListener("touchstart", (event) => event.target.closest(".chip") && event.preventDefault(), { passive: false });
  drawing.addEventListener("pointermove", (event) => {
    if (!drag) return;
    drag.event = event;
    if (!request) request = requestAnimationFrame(follow);
  });
  function follow() {
    request = 0;
    if (!drag) return;
    const [at, home] = [place(drag.event), places.gpus[drag.gpu]];
    drag.moved ||= Math.hypot(at.x - drag.from.x, at.y - drag.from.y) > 4;
    put(drag.chip, { transform: `translate(${home.x + at.x - drag.from.x} ${home.y + at.y - drag.from.y})` });
    const target = drag.moved ? under(drag.event, drag.gpu) : null;
    if (target === drag.target) return;
    drag.target?.classList.remove("target");
    target?.classList.add("target");
    drag.target = target;
  }
  function drop(event) {
    if (!drag) return;
    if (event.type === "pointerup" && drag.event) {
      drag.event = event;
      cancelAnimationFrame(request);
      follow();
    }
    const { gpu, chip, target, moved } = drag;
    drag = null;
    cancelAnimationFrame(request);
    request = 0;
    target?.classList.remove("target");
    chip.classList.remove("dragged");
    put(chip, { transform: `translate(${places.gpus[gpu].x} ${places.gpus[gpu].y})` });
    if (!moved || event.type !== "pointerup") return describe(gpu);
    if (target?.classList.contains("chip")) arrange(swapped(groups(), gpu, Number(target.dataset.gpu)));
    else if (target) move(gpu, Number(target.dataset.group));
  }
  drawing.addEventListener("pointerup", drop);
  drawing.addEventListener("pointercancel", drop);

  function focus(gpu) {
    focused = gpu;
    chips.forEach((chip, each) => put(chip, { tabindex: each === gpu ? 0 : -1 }));
  }
  function describe(gpu) {
    const m = machine();
    const to = Object.entries(Object.groupBy([...groups().keys()].filter((other) => other !== gpu), (other) => linkBetween(m, gpu, other)));
    said.say(`${one(gpu)}. ${to.map(([link, others]) => `${linkName(m.links[link])} to ${others.length > 8 ? `${others.length} others` : others.join(", ")}`).join("; ")}.`);
  }
  function neighbour(gpu, key) {
    if (key === "Home" || key === "End") return key === "Home" ? 0 : chips.length - 1;
    const [dx, dy] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[key];
    const here = places.gpus[gpu];
    let best = { gpu, cost: Infinity };
    places.gpus.forEach(({ x, y }, other) => {
      const [along, aside] = [(x - here.x) * dx + (y - here.y) * dy, Math.abs((x - here.x) * dy) + Math.abs((y - here.y) * dx)];
      if (other !== gpu && along > 1 && along + 2 * aside < best.cost) best = { gpu: other, cost: along + 2 * aside };
    });
    return best.gpu;
  }
  drawing.addEventListener("keydown", (event) => {
    const chip = event.target.closest(".chip");
    if (!chip || event.ctrlKey || event.metaKey || event.altKey) return;
    const gpu = Number(chip.dataset.gpu);
    const count = shape().pp * shape().replicas;
    if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End") {
      const next = neighbour(gpu, event.key);
      focus(next);
      chips[next].focus();
      if (held < 0) describe(next);
    } else if (/^\d$/.test(event.key)) {
      if (Number(event.key) < count) move(gpu, Number(event.key));
      else said.say(`There is no group ${event.key}: groups are 0 to ${count - 1}.`);
    } else if (event.key === "-") {
      move(gpu, -1);
    } else if (event.key === "Enter" || event.key === " ") {
      const before = held;
      held = before < 0 ? gpu : -1;
      if (before >= 0 && before !== gpu) arrange(swapped(groups(), before, gpu), "Swapped.");
      else said.say(held < 0 ? `${one(gpu)} put back.` : `${one(gpu)} picked up: go to another and press Enter to swap them, or a digit to send it to a group.`);
      drawChips(machine(), shape());
    } else if (event.key === "Escape" && held >= 0) {
      held = -1;
      said.say("Put back.");
      drawChips(machine(), shape());
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });

  const rebuild = () => {
    held = -1;
    drag = null;
    focused = 0;
    said.say(howTo());
    build();
  };
  const follows = { machine: rebuild, groups: draw, prices: draw, tp: draw, pp: draw, replicas: draw, heading: draw };
  for (const [name, listener] of Object.entries(follows)) model.on(`change:${name}`, listener);
  const watch = new ResizeObserver(() => {
    if (Math.abs((Math.floor(root.clientWidth) || places.width) - places.width) > 8 && !drag) build();
  });
  rebuild();
  watch.observe(root);
  return () => {
    watch.disconnect();
    cancelAnimationFrame(request);
    for (const [name, listener] of Object.entries(follows)) model.off(`change:${name}`, listener);
  };
}
