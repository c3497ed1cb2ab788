"""Figures: pure functions from a tidy frame to a ``plotly.graph_objects.Figure``. They know no cluster."""

from tplab.lab.figures.advice import flip_figure, flip_frame, front_figure, waterfall_figure
from tplab.lab.figures.collectives import algorithms_figure, busbw_figure, bytes_figure, latency_figure, ring_figure
from tplab.lab.figures.generation import layouts_figure
from tplab.lab.figures.launch import calls_figure, launch_figure
from tplab.lab.figures.layers import (
    chunk_lanes_figure,
    error_bytes_figure,
    overlap_figure,
    phases_figure,
    strategies_figure,
    timeline_figure,
)
from tplab.lab.figures.memory import degrees_frame, memory_figure, memory_frame, shards_figure
from tplab.lab.figures.painter import painter_figure
from tplab.lab.figures.pipeline import gantt, small_multiples
from tplab.lab.figures.pipeline_curves import bubble_figure, bubble_frame, decode_figure, prefill_figure
from tplab.lab.figures.timings import timings_figure
from tplab.lab.figures.topology import link_figure, link_frame, measured_links_frame, placement_figure
from tplab.lab.figures.verification import calibration_figure, verification_figure

__all__ = [
    "algorithms_figure",
    "bubble_figure",
    "bubble_frame",
    "busbw_figure",
    "bytes_figure",
    "calibration_figure",
    "calls_figure",
    "chunk_lanes_figure",
    "decode_figure",
    "degrees_frame",
    "error_bytes_figure",
    "flip_figure",
    "flip_frame",
    "front_figure",
    "gantt",
    "latency_figure",
    "launch_figure",
    "layouts_figure",
    "link_figure",
    "link_frame",
    "measured_links_frame",
    "memory_figure",
    "memory_frame",
    "overlap_figure",
    "painter_figure",
    "phases_figure",
    "placement_figure",
    "prefill_figure",
    "ring_figure",
    "shards_figure",
    "small_multiples",
    "strategies_figure",
    "timeline_figure",
    "timings_figure",
    "verification_figure",
    "waterfall_figure",
]
