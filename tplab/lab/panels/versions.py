"""What differs between ipywidgets 7 and 8, and on Colab, which has 7 and a page of its own."""

from typing import Any, Final

import ipywidgets as widgets
from IPython import get_ipython

SEVEN: Final = widgets.__version__.startswith("7.")
"""Whether this is ipywidgets 7 (https://ipywidgets.readthedocs.io/en/8.1.5/user_migration_guides.html)."""

VIEW: Final = "application/vnd.jupyter.widget-view+json"


def hint(text: str) -> dict[str, str]:
    """Keyword of a slider, a list or a field (not of a button) for what is said under the pointer."""
    return {"description_tooltip" if SEVEN else "tooltip": text}


def put_edge(layout: widgets.Layout, line: str) -> None:
    """Draw a line at the left; ipywidgets 7 has borders all around alone."""
    if SEVEN:
        layout.border = line.replace("4px", "1px", 1)
    else:
        layout.border_left = line


def on_colab() -> bool:
    """Whether this is a kernel of Colab, by its shell.

    That ``google.colab`` is loaded says less: plotly imports it wherever it is installed, and Kaggle's image is made
    from Colab's (https://github.com/Kaggle/docker-python/blob/main/Dockerfile.tmpl).
    """
    return type(get_ipython()).__module__.startswith("google.colab.")


def let_colab_load_widgets() -> None:
    """Colab draws the widgets of ipywidgets alone until it is told to load others.

    Source: https://github.com/googlecolab/colabtools/issues/498. anywidget tells it too, but not before its first
    widget, and a chip of ranks may be shown earlier.
    """
    if on_colab():
        from google.colab import output

        output.enable_custom_widget_manager()


def view_of(widget: widgets.DOMWidget) -> dict[str, Any]:
    """The MIME bundle of a widget's view, which ipywidgets 8 and anywidgets make themselves.

    Its format: https://ipywidgets.readthedocs.io/en/8.1.5/embedding.html.
    """
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"text/plain": repr(widget), VIEW: view}
