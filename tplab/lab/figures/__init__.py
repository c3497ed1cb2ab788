"""Figures: pure functions from a tidy frame to a ``plotly.graph_objects.Figure``. They know no cluster."""

from tplab.lab.figures.collectives import algorithms_figure, busbw_figure, bytes_figure, latency_figure, ring_figure
from tplab.lab.figures.launch import calls_figure, launch_figure
from tplab.lab.figures.timings import timings_figure

__all__ = [
    "algorithms_figure",
    "busbw_figure",
    "bytes_figure",
    "calls_figure",
    "latency_figure",
    "launch_figure",
    "ring_figure",
    "timings_figure",
]
