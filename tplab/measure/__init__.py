"""Measuring, once for all rooms: from a call on the ranks to a row with its provenance.

On the ranks:
  clock     how long a call takes, and when things happened, on one clock for all ranks of a machine
  graph     a call captured in a CUDA graph
  sampler   warm-up, ranks lined up, one time per sample; several calls in turns; messages there and back
In the notebook's kernel (no torch):
  samples   what the ranks reported, reduced: the slowest rank of every sample, then p50, p95 and min
  columns   the provenance columns of a frame, with one spelling of emulated links, and the badge

A measurement reports ``samples={key: microseconds}``, one number or several, and ``correct`` where it checked the
result; ``samples_of(run.reports)`` makes :class:`Samples` of them, by key. What runs on the ranks needs torch and is
imported there, from its module.
"""

from tplab.measure.columns import is_emulated, joined_badge, link_text, newest_spelling, provenance_columns
from tplab.measure.samples import Samples, samples_of

__all__ = [
    "Samples",
    "is_emulated",
    "joined_badge",
    "link_text",
    "newest_spelling",
    "provenance_columns",
    "samples_of",
]
