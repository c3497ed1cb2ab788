"""Ranks for a visitor of the demo, who has not asked for any yet."""

import ipywidgets as widgets

from tplab.lab.panels import html
from tplab.lab.panels.hello import HelloPanel
from tplab.lab.panels.layers import OverlapPanel
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.sweep import SweepPanel
from tplab.lab.pictures.two_ranks import TwoRanks


class RanksOnRequest(widgets.VBox):
    """A button; pressed, it becomes a pool of ranks and the panels that run on them.

    Args:
        pool: whose ranks they are; nothing has started them yet.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._button = widgets.Button(
            description=f"Start {pool.num_ranks} ranks", button_style="primary", layout=widgets.Layout(width="160px")
        )
        self._button.on_click(lambda _: self.begin())
        note = html.quiet(f"{pool.num_ranks} processes on the machine that serves this page, some 0.25 GB each.")
        super().__init__([self._button, widgets.HTML(note)])
        self.add_class("tplab-ranks-on-request")

    def begin(self) -> None:
        """Press the button."""
        if self._button.disabled:
            return
        self._button.disabled = True
        panels: list[widgets.DOMWidget] = [
            TwoRanks(self.pool),
            HelloPanel(self.pool),
            SweepPanel(self.pool),
            OverlapPanel(self.pool),
        ]
        for panel in panels:
            panel.layout.margin = "0 0 28px"
        self.children = [self.pool, *panels]
        _ = self.pool.cluster  # starts them, and does not wait
