"""The bar and the line under a panel's buttons, as screen readers hear them: a progressbar and a live status.

ipywidgets' own bar and HTML have neither role, and a live region must be in the page before its text changes.
"""

from pathlib import Path

import anywidget
import traitlets


class RunStatus(anywidget.AnyWidget):
    """``share`` of the work that is done (0 to 1), ``outcome`` (``success``, ``warning``, ``danger`` or empty) and
    ``words``."""

    _esm = Path(__file__).with_suffix(".js")
    share = traitlets.Float(0.0).tag(sync=True)
    outcome = traitlets.Unicode("").tag(sync=True)
    words = traitlets.Unicode("").tag(sync=True)
