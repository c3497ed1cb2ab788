// One plot of a panel: it is kept, and Plotly.react changes it. Its colours follow the page's theme; what a notebook
// stores stays a white card.

const MIME = "application/vnd.plotly.v1+json";
const EXTENSION = "jupyterlab-plotly";
// The place of a figure that is not there yet.
const EMPTY =
  "display:flex;align-items:center;justify-content:center;box-sizing:border-box;margin:0 4px;font-size:13px;" +
  "min-height:inherit;" +
  "border:1px dashed var(--jp-border-color1,#AEB6C1);border-radius:6px;color:var(--jp-ui-font-color1,#1F2430)";
const ASK_AGAIN_MS = 30000;
// A finger cannot hover: there plotly would show its bar at all times, over the title.
const displayModeBar = matchMedia("(hover: hover)").matches ? "hover" : false;
const CONFIG = { displaylogo: false, displayModeBar, modeBarButtons: [["toImage"]], showSendToCloud: false };

/** plotly.js, once per page: what the page has, else from the kernel. */
function loadPlotly(model) {
  globalThis.tplabPlotly ??= fromPage()
    .catch(() => fromKernel(model))
    .catch((error) => {
      globalThis.tplabPlotly = undefined; // another figure may have more luck
      throw error;
    });
  return globalThis.tplabPlotly;
}

/** The copy that JupyterLab's renderer of plain figures draws with; it loads with the first figure. */
async function fromPage() {
  if (globalThis.Plotly?.react) return globalThis.Plotly;
  const container = globalThis._JUPYTERLAB?.[EXTENSION];
  const { RenderedPlotly } = (await container.get("./mimeExtension"))();
  if (!RenderedPlotly.Plotly) {
    const data = { [MIME]: { data: [], layout: { width: 10, height: 10 }, config: {} } };
    await new RenderedPlotly({ mimeType: MIME }).renderModel({ data, setData() {} });
  }
  const plotly = RenderedPlotly.Plotly;
  if (typeof plotly?.react !== "function") throw new Error("the page's plotly.js is of another kind");
  return plotly;
}

async function fromKernel(model) {
  const packed = await new Promise((resolve, reject) => {
    const listen = (content, buffers) => {
      if (content?.kind !== "plotly.js") return;
      model.off("msg:custom", listen);
      resolve(buffers[0]);
    };
    model.on("msg:custom", listen);
    model.send({ kind: "plotly.js" });
    setTimeout(() => reject(new Error("the kernel did not send plotly.js")), ASK_AGAIN_MS);
  });
  const code = await inflated(packed).text();
  // As a module of its own: where anywidgets run, that is allowed, and `eval` need not be.
  // plotly.js 2, which comes with plotly 5, asks for `exports` besides.
  const module = `const module = { exports: {} }, { exports } = module;\n${code}\nexport default module.exports;`;
  const url = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
  try {
    return (await import(/* webpackIgnore: true */ url)).default;
  } finally {
    URL.revokeObjectURL(url);
  }
}

const inflated = (bytes) => new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")));

/** Data and layout from what the kernel sent, compressed or not. */
async function unpacked(bytes) {
  const packed = bytes.getUint8(0) !== "{".charCodeAt(0);
  return (packed ? inflated(bytes) : new Response(new Blob([bytes]))).json();
}

// What the lab's figures are coloured with on white, and in its place on a dark page. Fills that text stands on keep
// enough contrast to white; text that stands on a fill has an ink of its own, which does not change.
const DARK = {
  "#1F2430": "#E4E7EC", // ink
  "#5B6472": "#A9B2BF", // muted
  "#0B3D84": "#3A78D6", // forward
  "#B21405": "#E0452F", // collective
  "#007E5D": "#16966F", // weight gradient
  "#E9EBEE": "#39404C", // idle
  "#E4E7EB": "#2E343F", // grid
  "#AEB6C1": "#5C6675", // axes
  "#C9CFD6": "#565F6C",
  "#3E6BB0": "#5B86C9",
  "#B07B00": "#C98F14",
};
const DARK_INK_FILL = "#66707F";
const CLEAR = "rgba(0,0,0,0)";
const isWhite = (colour) => /^(white|#fff|#ffffff)$/i.test(colour);

/** The first background behind an element that is not transparent, and whether it is dark. */
function backdrop(element) {
  for (let each = element; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    const [red, green, blue, alpha = 1] = colour.match(/[\d.]+/g)?.map(Number) ?? [255, 255, 255, 0];
    if (alpha > 0.5) return { colour, dark: 0.299 * red + 0.587 * green + 0.114 * blue < 110 };
  }
  return { colour: "white", dark: false };
}

/** The same figure on the page's own ground. */
function themed(figure, page) {
  const layout = page.dark ? recoloured(figure.layout, "layout", page, "") : { ...figure.layout };
  layout.paper_bgcolor = CLEAR;
  layout.plot_bgcolor = CLEAR;
  const data = page.dark ? figure.data.map((trace) => recoloured(trace, "trace", page, trace.type)) : figure.data;
  return { data, layout };
}

function recoloured(value, key, page, type, parent = "") {
  if (typeof value === "string") return colourFor(value, key, page, type, parent);
  if (Array.isArray(value)) {
    return key === "colorscale" ? value : value.map((each) => recoloured(each, key, page, type, parent));
  }
  if (value === null || typeof value !== "object" || "bdata" in value) return value;
  const changed = {};
  for (const [name, each] of Object.entries(value)) {
    changed[name] = recoloured(each, name, page, type, typeof key === "string" ? key : parent);
  }
  // A filled annotation, as a badge is, is a fill with text on it.
  const filled = value.text !== undefined && value.bgcolor && !isWhite(value.bgcolor);
  if (filled) Object.assign(changed, { bgcolor: value.bgcolor, font: value.font });
  return changed;
}

function colourFor(value, key, page, type, parent) {
  const colour = value.startsWith("#") ? value.toUpperCase() : value;
  if (isWhite(colour)) return key === "bgcolor" || (key === "color" && parent === "line") ? page.colour : value;
  if (colour === "#1F2430" && type === "bar" && key === "color" && parent === "marker") return DARK_INK_FILL;
  if (colour in DARK) return DARK[colour];
  if (value.includes("color:#")) return value.replace(/(?<=color:)#\w{6}/g, (each) => DARK[each.toUpperCase()] ?? each);
  return key === "fillcolor" ? dimmed(colour) : value;
}

/** A pale fill, dark enough for light text. */
function dimmed(colour) {
  const parts = /^#[0-9A-F]{6}$/.test(colour) ? [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) : null;
  if (!parts || Math.min(...parts) < 0xb0) return colour;
  return `rgb(${parts.map((each) => Math.round(each * 0.22)).join(",")})`;
}

function measured(text, pixels, family) {
  const context = (measured.canvas ??= document.createElement("canvas")).getContext("2d");
  context.font = `${text.includes("<b>") ? "bold " : ""}${pixels}px ${family}`;
  return context.measureText(text.replace(/<[^>]+>/g, "")).width;
}

/** The largest of some letters with which a line has room; undefined if none. */
const sizeFor = (text, from, least, room, family) => {
  for (let size = from; size >= least; size--) if (measured(text, size, family) <= room) return size;
  return undefined;
};

/** A title that is wider than the plot gets smaller letters, then a second line; so do a line above it and axes' titles. */
function fitted(layout, width, left) {
  const family = layout.font?.family ?? "sans-serif";
  const room = width - left - 14;
  const fit = (text, size, least) => {
    const fits = sizeFor(text, size, least, room, family);
    return fits ? { text, size: fits } : { text: inLines(text, least, room, family), size: least };
  };
  const changed = { ...layout };
  const title = layout.title;
  if (title?.text && !title.text.includes("<")) {
    const { text, size } = fit(title.text, title.font?.size ?? 16, 13);
    const place = text === title.text ? {} : { y: 0.97 };
    changed.title = { ...title, ...place, text, font: { ...title.font, size } };
  }
  for (const name of Object.keys(layout).filter((each) => /^xaxis\d*$/.test(each))) {
    changed[name] = fittedAxis(layout[name], room - 10, family);
  }
  const heads = layout.annotations?.filter(isHead) ?? [];
  const sizes = heads.map((each) => sizeFor(each.text, each.font?.size ?? 12, 8, room / heads.length, family) ?? 8);
  changed.annotations = layout.annotations?.map((each) => {
    if (isHead(each)) return { ...each, font: { ...each.font, size: Math.min(...sizes) } };
    const line = each.xref === "paper" && each.xanchor === "left" && each.x === 0 && !each.text?.includes("<br");
    if (!line) return each;
    const { text, size } = fit(each.text, each.font?.size ?? 12, 9);
    return { ...each, text, align: "left", font: { ...each.font, size } };
  });
  return changed;
}

/** The name of a subplot, above it. */
const isHead = ({ xref, yref, xanchor, showarrow }) =>
  xref === "paper" && yref === "paper" && xanchor === "center" && showarrow === false;

/** An axis's title as the plot's; labels that would run into each other may be turned. */
function fittedAxis(axis, width, family) {
  const [from, to] = axis.domain ?? [0, 1];
  const room = (to - from) * width;
  const changed = { ...axis };
  const widest = Math.max(0, ...(axis.ticktext ?? []).flatMap((text) => text.split("<br>")).map((line) => measured(line, 12, family)));
  if (axis.tickangle === 0 && widest > room / axis.ticktext?.length) delete changed.tickangle;
  const title = axis.title?.text;
  if (!title || title.includes("<")) return changed;
  const size = sizeFor(title, axis.title.font?.size ?? 13, 11, room, family);
  const font = { ...axis.title.font, size: size ?? 11 };
  changed.title = { ...axis.title, text: size ? title : inLines(title, 11, room, family), font };
  return changed;
}

/** Text in lines that have room; tags around all of it stay where they are. */
function inLines(text, size, room, family) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (!lines.at(-1) || measured(longer, size, family) <= room) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines.join("<br>");
}

const WIDGET = ".widget-inline-hbox, .jupyter-widgets";

/** Names for what ipywidgets leaves without: handles of sliders, fields whose label is beside. */
function label(panel) {
  for (const handle of panel.querySelectorAll(".noUi-handle:not([aria-label])")) {
    const widget = handle.closest(WIDGET);
    const ends = widget.querySelectorAll(".noUi-handle");
    const end = ends.length === 2 ? [", from", ", to"][[...ends].indexOf(handle)] : "";
    handle.setAttribute("aria-label", (widget.querySelector(".widget-label")?.textContent || "value") + end);
  }
  for (const slider of panel.querySelectorAll(".widget-slider")) {
    const handles = slider.querySelectorAll(".noUi-handle");
    const shown = slider.querySelector(".widget-readout")?.textContent ?? "";
    const values = handles.length === 2 ? shown.split(/\s*[-–]\s*/) : [shown];
    if (shown && values.length === handles.length) {
      handles.forEach((handle, index) => setOnce(handle, "aria-valuetext", values[index]));
    }
  }
  for (const field of panel.querySelectorAll("input:not([type=hidden]), textarea, select")) {
    if (field.labels?.length || field.ariaLabel || field.title) continue;
    const near = field.closest(WIDGET)?.querySelector(".widget-label")?.textContent;
    field.setAttribute("aria-label", near || field.placeholder || "value");
  }
}

function setOnce(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

function render({ model, el }) {
  const plot = document.createElement("div");
  plot.setAttribute("role", "img");
  el.append(plot);
  let figure = null;
  let drawing = false;
  let again = false;
  let gone = false;
  let width = 0;
  let left = 80; // what stands left of the plot, as the last drawing needed it
  let page = { colour: "", dark: false };

  async function draw() {
    if (drawing) {
      again = true; // of many moves the last one counts
      return;
    }
    drawing = true;
    try {
      do {
        again = false;
        width = el.clientWidth;
        if (!figure || !width) break;
        const plotly = await loadPlotly(model);
        if (gone) break;
        page = backdrop(el);
        const { data, layout } = themed(figure, page);
        const put = () => plotly.react(plot, data, { ...fitted(layout, width, left), width, autosize: false }, CONFIG);
        await put();
        const used = plot._fullLayout?._size?.l ?? left; // labels of the axis may have needed more
        if (Math.abs(used - left) > 4) {
          left = used;
          await put();
        }
        plot.dataset.drawn = String(Number(plot.dataset.drawn ?? 0) + 1);
      } while (again && !gone);
    } catch (error) {
      plot.textContent = `This figure cannot be drawn here (${error.message}). It is in the panel's figure: panel.figure`;
      el.closest(".tplab-live")?.classList.remove("tplab-live"); // the still below has it, as a plain figure
    } finally {
      drawing = false;
    }
  }
  async function take() {
    const bytes = model.get("_plot");
    if (!bytes?.byteLength) {
      plot.textContent = model.get("alt");
      plot.style.cssText = EMPTY; // as high as the view, whose own height may be set later
      return;
    }
    const next = await unpacked(bytes);
    if (model.get("_plot") !== bytes) return; // a newer one has come meanwhile
    if (!figure) plot.replaceChildren();
    plot.style.cssText = "";
    figure = next;
    draw();
  }
  const name = () => {
    plot.setAttribute("aria-label", model.get("alt") || "Figure");
    if (!figure) take();
  };
  model.on("change:_plot", take);
  model.on("change:alt", name);

  const sized = new ResizeObserver(() => {
    if (el.clientWidth && el.clientWidth !== width) draw();
  });
  sized.observe(el);
  const dress = () => {
    if (backdrop(el).colour !== page.colour) draw();
  };
  const dressed = new MutationObserver(() => {
    dress();
    setTimeout(dress, 500); // style sheets come after the attribute
  });
  for (const root of [document.documentElement, document.body]) {
    const attributeFilter = ["class", "style", "data-theme", "data-jp-theme-name", "data-jp-theme-light", "data-vscode-theme-kind"];
    dressed.observe(root, { attributes: true, attributeFilter });
  }
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", dress);

  let panel = null;
  let asked = 0;
  const labels = new MutationObserver(() => {
    asked ||= setTimeout(() => {
      asked = 0;
      label(panel);
    }, 100);
  });
  const settle = setTimeout(() => {
    panel = el.closest(".tplab-columns");
    if (!panel) return;
    label(panel);
    labels.observe(panel, { childList: true, subtree: true, characterData: true });
  }, 300); // a view is put into the page after it was made

  name();
  return () => {
    gone = true;
    clearTimeout(settle);
    clearTimeout(asked);
    labels.disconnect();
    sized.disconnect();
    dressed.disconnect();
    system.removeEventListener("change", dress);
    model.off("change:_plot", take);
    model.off("change:alt", name);
    globalThis.tplabPlotly?.then((plotly) => plotly.purge(plot)).catch(() => {});
  };
}

export default { render };
