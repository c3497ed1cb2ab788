"""Figures: pure functions from a tidy frame to a ``plotly.graph_objects.Figure``. They know no cluster."""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.lab.figures.advice import flip_figure as flip_figure
    from tplab.lab.figures.advice import flip_frame as flip_frame
    from tplab.lab.figures.advice import front_figure as front_figure
    from tplab.lab.figures.advice import waterfall_figure as waterfall_figure
    from tplab.lab.figures.arrivals import arrivals_figure as arrivals_figure
    from tplab.lab.figures.collectives import algorithms_figure as algorithms_figure
    from tplab.lab.figures.collectives import busbw_figure as busbw_figure
    from tplab.lab.figures.collectives import bytes_figure as bytes_figure
    from tplab.lab.figures.collectives import latency_figure as latency_figure
    from tplab.lab.figures.collectives import race_figure as race_figure
    from tplab.lab.figures.crossover import crossover_figure as crossover_figure
    from tplab.lab.figures.crossover import losses_figure as losses_figure
    from tplab.lab.figures.generation import layouts_figure as layouts_figure
    from tplab.lab.figures.hang import hang_figure as hang_figure
    from tplab.lab.figures.launch import calls_figure as calls_figure
    from tplab.lab.figures.launch import explain_calls as explain_calls
    from tplab.lab.figures.launch import explain_launch as explain_launch
    from tplab.lab.figures.launch import launch_figure as launch_figure
    from tplab.lab.figures.layers import chunk_lanes_figure as chunk_lanes_figure
    from tplab.lab.figures.layers import error_bytes_figure as error_bytes_figure
    from tplab.lab.figures.layers import overlap_figure as overlap_figure
    from tplab.lab.figures.layers import phases_figure as phases_figure
    from tplab.lab.figures.layers import strategies_figure as strategies_figure
    from tplab.lab.figures.layers import timeline_figure as timeline_figure
    from tplab.lab.figures.memory import by_stage as by_stage
    from tplab.lab.figures.memory import degrees_frame as degrees_frame
    from tplab.lab.figures.memory import memory_figure as memory_figure
    from tplab.lab.figures.memory import memory_frame as memory_frame
    from tplab.lab.figures.memory import shards_figure as shards_figure
    from tplab.lab.figures.pipeline import gantt as gantt
    from tplab.lab.figures.pipeline import small_multiples as small_multiples
    from tplab.lab.figures.pipeline_curves import bubble_figure as bubble_figure
    from tplab.lab.figures.pipeline_curves import bubble_frame as bubble_frame
    from tplab.lab.figures.pipeline_curves import decode_figure as decode_figure
    from tplab.lab.figures.pipeline_curves import few_micro_batches_figure as few_micro_batches_figure
    from tplab.lab.figures.pipeline_curves import few_micro_batches_frame as few_micro_batches_frame
    from tplab.lab.figures.pipeline_curves import prefill_figure as prefill_figure
    from tplab.lab.figures.profile import profile_figure as profile_figure
    from tplab.lab.figures.timings import timings_figure as timings_figure
    from tplab.lab.figures.topology import link_figure as link_figure
    from tplab.lab.figures.topology import link_frame as link_frame
    from tplab.lab.figures.topology import measured_links_frame as measured_links_frame
    from tplab.lab.figures.topology import placement_figure as placement_figure
    from tplab.lab.figures.verification import calibration_figure as calibration_figure
    from tplab.lab.figures.verification import verification_figure as verification_figure

__getattr__, __dir__, __all__ = lazy_names(__name__)
