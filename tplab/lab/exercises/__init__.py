"""Checkers of the notebooks' exercises. They run the learner's function on real ranks and speak in plain words.

verdict     what a checker says
reduction   00: every rank holds the product
memory      01: bytes of keys and values per token
layers      03: a tensor-parallel MLP and attention
overlap     04: the chunk count, predicted
quantised   04: an int8 all-reduce
topology    07: a score by which to choose a layout
pipeline    05: a schedule, its makespan and what it holds
"""

from tplab.lab.exercises.layers import check_attention, check_mlp
from tplab.lab.exercises.memory import check_kv_bytes
from tplab.lab.exercises.overlap import check_chunk_choice
from tplab.lab.exercises.pipeline import check_schedule
from tplab.lab.exercises.quantised import check_int8_all_reduce
from tplab.lab.exercises.reduction import check_reduction
from tplab.lab.exercises.topology import check_score
from tplab.lab.exercises.verdict import Verdict

__all__ = [
    "Verdict",
    "check_attention",
    "check_chunk_choice",
    "check_int8_all_reduce",
    "check_kv_bytes",
    "check_mlp",
    "check_reduction",
    "check_schedule",
    "check_score",
]
