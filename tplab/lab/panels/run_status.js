// A progress bar and a line of words, as screen readers hear them.

const COLOURS = { "": "#2D7FD3", success: "#16966F", warning: "#D98E04", danger: "#D1382A" };

function render({ model, el }) {
  const bar = document.createElement("div");
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-label", "Progress of the run");
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "100");
  bar.style.cssText =
    "height:6px;border-radius:3px;overflow:hidden;margin:8px 2px 6px;background:var(--jp-layout-color3,#DDE1E6)";
  const done = document.createElement("div");
  done.style.height = "100%";
  bar.append(done);
  const line = document.createElement("div");
  line.className = "tplab-phase";
  line.setAttribute("role", "status");
  line.setAttribute("aria-live", "polite");
  line.style.cssText =
    "font-size:12px;line-height:1.4;min-height:1.4em;margin:0 2px;color:var(--jp-ui-font-color1,#1F2430)";
  el.append(bar, line);

  function show() {
    const percent = Math.round(100 * model.get("share"));
    bar.setAttribute("aria-valuenow", String(percent));
    done.style.width = `${percent}%`;
    done.style.background = COLOURS[model.get("outcome")];
    if (line.textContent !== model.get("words")) line.textContent = model.get("words");
  }
  const names = ["share", "outcome", "words"].map((name) => `change:${name}`);
  names.forEach((name) => model.on(name, show));
  show();
  return () => names.forEach((name) => model.off(name, show));
}

export default { render };
