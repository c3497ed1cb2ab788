// Draws the site's moving pictures into their places once they are scrolled near (docs/_ext/tplab_pictures.py).
// An address sets a picture's settings: page.html#race:num_ranks=8&nbytes=1024. It is no text of ours: each value is
// held against the rule that the page carries for it, and what does not fit is left out.

(() => {
  const scripts = new URL(".", document.currentScript.src);
  const loading = {};
  const places = [];
  const TABLE = /^\d{1,3}[FBIW]\d{1,3}(?:[,\n]\d{1,3}[FBIW]\d{1,3})*\n?$/; // a schedule, one line per rank

  function load(script) {
    loading[script] ??= new Promise((resolve, reject) => {
      const element = document.createElement("script");
      element.src = new URL(script, scripts);
      element.onload = resolve;
      element.onerror = () => reject(new Error(`${script} could not be read`));
      document.head.append(element);
    });
    return loading[script];
  }

  /** The value of `text` by a rule, or undefined. */
  function valueBy(rule, text, state) {
    const parse = (one, offered) => offered.find((each) => String(each) === one);
    if (rule.one_of) return parse(text, rule.one_of);
    if (rule.key_of) return parse(text, Object.keys(rule.key_of.reduce((inner, name) => inner[name], state)));
    const several = text.split(",");
    if (rule.some_of) return several.every((each) => rule.some_of.includes(each)) ? several : undefined;
    if (rule.each_of) return several.length === rule.count && several.every((each) => rule.each_of.includes(each)) ? several : undefined;
    if (rule.table) return text.length < 8 * rule.table && TABLE.test(text) ? text : undefined;
    if (rule.groups) {
      const groups = several.map((each) => (/^-?\d{1,3}$/.test(each) ? Number(each) : NaN));
      const most = Math.max(...state.groups);
      return groups.length === state.groups.length && groups.every((each) => each >= -1 && each <= most) ? groups : undefined;
    }
    const value = Number(text);
    const fits = text.trim() !== "" && value >= rule.least && value <= rule.most && !(rule.whole && !Number.isInteger(value));
    return fits ? value : undefined;
  }

  /** The place that the address speaks of, and the settings that it may make there. */
  function asked() {
    const [name, rest] = location.hash.slice(1).split(/:(.*)/s);
    const found = places.find((place) => place.name === name);
    if (!found || rest === undefined) return null;
    const settings = {};
    for (const [trait, text] of new URLSearchParams(rest)) {
      const rule = Object.hasOwn(found.rules, trait) ? found.rules[trait] : null;
      const value = rule ? valueBy(rule, text, found.state) : undefined;
      if (value !== undefined) settings[trait] = value;
    }
    return { place: found, settings };
  }

  function linkOf({ name, rules, model }) {
    const settings = Object.keys(rules).map((trait) => [trait, [model.get(trait)].flat().join(",")]);
    return `#${name}:${new URLSearchParams(settings)}`;
  }

  function shareRow(place) {
    const row = document.createElement("div");
    row.className = "tplab-share";
    const [button, said] = [document.createElement("button"), document.createElement("span")];
    button.type = "button";
    button.textContent = "Link to these settings";
    said.setAttribute("role", "status");
    button.addEventListener("click", () => {
      history.pushState(null, "", linkOf(place)); // unlike a new `location.hash` it asks nobody to follow
      const done = () => { said.textContent = "Copied; it is in the address bar, too."; };
      const byHand = () => { said.textContent = "It is in the address bar."; };
      if (!navigator.clipboard) return byHand();
      navigator.clipboard.writeText(location.href).then(done, byHand);
    });
    row.append(button, said);
    return row;
  }

  /** The figure's model, as its view in notebooks asks for it. */
  function figureModel({ figure, alt }) {
    const bytes = new DataView(new TextEncoder().encode(JSON.stringify(figure)).buffer);
    return { get: (name) => (name === "_plot" ? bytes : alt), on() {}, off() {} };
  }

  async function start(place) {
    place.started ??= draw(place);
    await place.started;
  }

  async function draw(place) {
    try {
      if (place.kind === "figure") await load("pictures/plotly.min.js");
      await load(place.element.dataset.script);
      const { render, localModel } = globalThis.tplabPictures[place.kind];
      place.model = place.kind === "figure" ? figureModel(place.state) : localModel(place.state);
      const [outside, inside] = [document.createElement("div"), document.createElement("div")];
      (place.kind === "figure" ? outside : outside.attachShadow({ mode: "open" })).append(inside);
      place.element.prepend(outside);
      render({ model: place.model, el: inside });
    } catch (error) {
      console.error(error);
      const words = "The picture could not be drawn in this browser.";
      place.element.replaceChildren(Object.assign(document.createElement("p"), { textContent: words }));
      return;
    }
    place.image?.classList.add("tplab-replaced");
    if (Object.keys(place.rules).length) place.element.append(shareRow(place));
    place.element.classList.add("tplab-drawn");
  }

  /** The stored image that a notebook's place replaces: what stands before it in its cell's output. */
  function imageBefore(element) {
    const before = element.closest(".cell_output > *")?.previousElementSibling;
    return before?.matches("img") || before?.querySelector("img") ? before : null;
  }

  for (const element of document.querySelectorAll(".tplab-place")) {
    const { state, rules } = JSON.parse(element.querySelector(":scope > script").textContent);
    const before = places.filter((each) => each.kind === element.dataset.picture).length;
    const kind = element.dataset.picture;
    places.push({ element, kind, state, rules, name: before ? `${kind}-${before + 1}` : kind, image: imageBefore(element) });
  }
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      start(places.find(({ element }) => element === target));
    }
  }, { rootMargin: "150px" });
  places.forEach(({ element }) => near.observe(element));

  async function follow() {
    const wanted = asked();
    if (!wanted) return;
    const { place, settings } = wanted;
    await start(place);
    for (const [trait, value] of Object.entries(settings)) place.model?.set(trait, value);
    place.element.scrollIntoView({ block: "start" });
  }
  addEventListener("hashchange", follow);
  // Paper does not scroll. What is drawn before the printer looks is printed; else what readers without JavaScript see.
  addEventListener("beforeprint", () => {
    for (const place of places) {
      start(place);
      const [without] = place.element.getElementsByTagName("noscript");
      if (without) place.element.insertAdjacentHTML("afterbegin", `<div class="tplab-printed">${without.textContent}</div>`);
    }
  });
  addEventListener("afterprint", () => document.querySelectorAll(".tplab-printed").forEach((each) => each.remove()));
  follow();
})();
