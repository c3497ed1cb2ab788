// A style sheet for JupyterLab and Notebook, as the smallest extension that they load: a style alone, no plugin, so that
// an error here ends in their log and nothing else. Not a style in the outputs alone: a notebook that somebody else has
// run is not trusted, and its styles are taken out.
(globalThis._JUPYTERLAB ??= {}).tplab = {
  init() {},
  async get() {
    const style = document.createElement("style");
    // plotly's renderer shows a stored image, at one pixel of it a pixel, until the pointer comes; it would be cut.
    style.textContent = ".jp-RenderedPlotly > .plot-img { max-width: min(100%, 820px); height: auto; }";
    document.head.append(style);
    return () => ({});
  },
};
