"""Tensor-parallel layers: what they are, what they should cost, what they do cost.

What it is:
  comm          the collectives that layers need: over a process group, alone, recorded
  emulated_comm   the same over a declared link; symmetric_comm: over GPUs that write into each other's memory
  emulated_processor   products that take as long as on one of a declared speed
  ranges        which rows, tokens and heads a rank holds, without torch; shards: of which full tensors
  strategies    when and how partial sums become sums: blocking, chunked, batch split, sequence parallel, int8,
                one kernel
  sum_norm      the sum, the residual and the norm after it as one call
  regions       the same collectives and the two matmuls with their gradients; shared weights and norms, sharded tokens
  linear        ColumnParallelLinear, RowParallelLinear
  vocabulary    VocabParallelEmbedding, ParallelLMHead; cross-entropy, argmax and sampling over a sharded vocabulary
  plain         the unsharded MLP, attention and block that the parallel ones are made from
  core_attention   rotary positions, keys and values of the past, what happens between attention's projections
  attention, block   ParallelAttention; ParallelMLP, ParallelBlock
  decode, kernels   one token through a stack of blocks, with fused GPU kernels
  noise         random numbers by place, for sampling on the device
  article       TensorParallelLinear and TensorParallelAttention, as the article calls them
  mistakes      the wrong versions, for notebook 03 and the tests that catch them
What it should cost (pure: no process group, no cluster, no torch):
  plan          which collectives a choice of column and row per matrix forces
  cost          overlap: time of chunked and split layers from the times of their parts
What it does cost (on a cluster):
  counting      collectives and bytes by layer, beside the formula
  overlap       chunk counts and strategies timed
  phases        a block's time from decode to prefill: computation, and communication that is exposed
  timeline      one pass as it ran: computation, hidden and exposed communication

Public names load on first use: the pure modules serve the notebook's kernel, which does without torch.
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.layers.article import TensorParallelAttention as TensorParallelAttention
    from tplab.layers.article import TensorParallelLinear as TensorParallelLinear
    from tplab.layers.attention import ParallelAttention as ParallelAttention
    from tplab.layers.block import ParallelBlock as ParallelBlock
    from tplab.layers.block import ParallelMLP as ParallelMLP
    from tplab.layers.comm import NullComm as NullComm
    from tplab.layers.core_attention import KVCache as KVCache
    from tplab.layers.cost import pipelined_us as pipelined_us
    from tplab.layers.counting import count_block as count_block
    from tplab.layers.emulated_comm import EmulatedComm as EmulatedComm
    from tplab.layers.linear import ColumnParallelLinear as ColumnParallelLinear
    from tplab.layers.linear import RowParallelLinear as RowParallelLinear
    from tplab.layers.mistakes import WaitsAtOnce as WaitsAtOnce
    from tplab.layers.mistakes import demonstrate as demonstrate
    from tplab.layers.mistakes import explain_mistakes as explain_mistakes
    from tplab.layers.overlap import StackPlan as StackPlan
    from tplab.layers.overlap import measure_chunks as measure_chunks
    from tplab.layers.overlap import measure_strategies as measure_strategies
    from tplab.layers.phases import PhasePlan as PhasePlan
    from tplab.layers.phases import measure_phases as measure_phases
    from tplab.layers.plain import MLP as MLP
    from tplab.layers.plain import Attention as Attention
    from tplab.layers.plan import CHOICES as CHOICES
    from tplab.layers.plan import MATRICES as MATRICES
    from tplab.layers.plan import plan_block as plan_block
    from tplab.layers.strategies import BatchSplit as BatchSplit
    from tplab.layers.strategies import Blocking as Blocking
    from tplab.layers.strategies import Chunked as Chunked
    from tplab.layers.strategies import Int8 as Int8
    from tplab.layers.strategies import OneKernel as OneKernel
    from tplab.layers.strategies import SequenceParallel as SequenceParallel
    from tplab.layers.strategies import set_strategy as set_strategy
    from tplab.layers.sum_norm import sum_add_norm as sum_add_norm
    from tplab.layers.symmetric_comm import SymmetricComm as SymmetricComm
    from tplab.layers.timeline import overlap_ratio as overlap_ratio
    from tplab.layers.timeline import record_timeline as record_timeline
    from tplab.layers.vocabulary import ParallelLMHead as ParallelLMHead
    from tplab.layers.vocabulary import VocabParallelEmbedding as VocabParallelEmbedding
    from tplab.layers.vocabulary import parallel_cross_entropy as parallel_cross_entropy

__getattr__, __dir__, __all__ = lazy_names(__name__)
