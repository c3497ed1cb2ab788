"""Checkers of the notebooks' exercises. They run the learner's function on real ranks and speak in plain words.

verdict     what a checker says
trial       the learner's function on the ranks, warmed, timed and counted; on_ranks: the rank's side of it
registry    every exercise: its notebook, its function, its checker; own_work: what an answer may not use when graded
reduction   00: every rank holds the product
memory      01: bytes of keys and values per token
ring        02: a ring all-reduce
layers      03: a tensor-parallel MLP and attention
fused_qkv   03: a rank's part of a fused QKV weight, read from a file
overlap     04: the chunk count, predicted
quantised   04: an int8 all-reduce
hiding      04: an all-reduce hidden behind products
topology    07: a score by which to choose a layout
pipeline    05: a schedule, its makespan and what it holds
argmax      08: the likeliest token of a vocabulary that the ranks share
chunks      05: a prompt in chunks that get dearer
admission   05: which requests a decoding ring takes in
placement   07: two groups of two GPUs
repair      08: a decoder with three bugs
exchange    09: two ranks swap tensors of unknown length
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.lab.exercises.admission import check_admit as check_admit
    from tplab.lab.exercises.argmax import check_argmax as check_argmax
    from tplab.lab.exercises.chunks import check_chunks as check_chunks
    from tplab.lab.exercises.exchange import check_exchange as check_exchange
    from tplab.lab.exercises.fused_qkv import check_qkv as check_qkv
    from tplab.lab.exercises.hiding import check_overlap as check_overlap
    from tplab.lab.exercises.layers import check_attention as check_attention
    from tplab.lab.exercises.layers import check_mlp as check_mlp
    from tplab.lab.exercises.memory import check_kv_bytes as check_kv_bytes
    from tplab.lab.exercises.overlap import check_chunk_choice as check_chunk_choice
    from tplab.lab.exercises.pipeline import check_schedule as check_schedule
    from tplab.lab.exercises.placement import check_place as check_place
    from tplab.lab.exercises.quantised import check_int8_all_reduce as check_int8_all_reduce
    from tplab.lab.exercises.reduction import check_reduction as check_reduction
    from tplab.lab.exercises.registry import EXERCISES as EXERCISES
    from tplab.lab.exercises.registry import Exercise as Exercise
    from tplab.lab.exercises.repair import check_repair as check_repair
    from tplab.lab.exercises.ring import check_ring as check_ring
    from tplab.lab.exercises.topology import check_score as check_score
    from tplab.lab.exercises.verdict import Verdict as Verdict

__getattr__, __dir__, __all__ = lazy_names(__name__)
