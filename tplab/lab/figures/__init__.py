"""Figures: pure functions from a tidy frame to a ``plotly.graph_objects.Figure``. They know no cluster."""

from tplab.lab.figures.launch import calls_figure, launch_figure
from tplab.lab.figures.timings import timings_figure

__all__ = ["calls_figure", "launch_figure", "timings_figure"]
