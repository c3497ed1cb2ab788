"""All-reduce and friends: what they are, what they should cost, what they do cost.

What it is:
  transport            what an algorithm needs from below: messages that start without blocking
  ring, two_shot, one_shot, recursive_doubling   all-reduces built from point-to-point calls
  direct               all-gather and reduce-scatter in one round
  emulated             links of declared latency and bandwidth (emulated_link) over gloo
  symmetric            torch's all-reduces in one CUDA kernel, over memory that GPUs share
  peer_memory          ours, which write into the other GPUs' memory; peer_kernels, quantised_kernels: in Triton
  limits               up to which size they are taken
  quantised            two-shot in int8 messages
  counter              the collective and point-to-point calls a rank issues, and their payload bytes
What it should cost (pure: no process group, no cluster):
  volumes              bytes, by collective and algorithm
  cost                 time: alpha-beta line, curve, formulas, lower bound
  crossover            the fastest of a sweep by size, and what engines' fixed limits (engine_thresholds) lose beside it
What it does cost (on a cluster):
  sweep, timing        all-reduce over sizes, dtypes and algorithms; the rank's side of it; sweep_plan: what they share
  point_to_point       every pair of ranks
  measured_race        algorithms at one size, each beside its formula with the link of the same minute
  counting             counted bytes beside the formula
  emulated_sweep       algorithms over a declared link beside the formula
  nccl_tests           what nccl-tests and rccl-tests printed, as a sweep; nccl_text: taken apart, nccl_checks: judged
  quantised_sweep      int8 beside bfloat16 and float32: bytes, error, time

Public names load on first use: the pure modules serve the notebook's kernel, which does without torch.
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.collectives.cost import AlphaBeta as AlphaBeta
    from tplab.collectives.cost import Curve as Curve
    from tplab.collectives.cost import fit_ends as fit_ends
    from tplab.collectives.cost import fit_line as fit_line
    from tplab.collectives.cost import lower_bound_us as lower_bound_us
    from tplab.collectives.cost import time_us as time_us
    from tplab.collectives.counter import CommCounter as CommCounter
    from tplab.collectives.counting import count_sent_bytes as count_sent_bytes
    from tplab.collectives.crossover import comparable as comparable
    from tplab.collectives.crossover import crossovers as crossovers
    from tplab.collectives.crossover import engine_losses as engine_losses
    from tplab.collectives.crossover import explain_crossovers as explain_crossovers
    from tplab.collectives.crossover import fastest as fastest
    from tplab.collectives.crossover import rules_beside as rules_beside
    from tplab.collectives.emulated import EmulatedGroup as EmulatedGroup
    from tplab.collectives.emulated_link import EmulatedLink as EmulatedLink
    from tplab.collectives.emulated_link import LinkTable as LinkTable
    from tplab.collectives.emulated_sweep import measure_emulated as measure_emulated
    from tplab.collectives.engine_thresholds import engine_rules as engine_rules
    from tplab.collectives.limits import Limits as Limits
    from tplab.collectives.nccl_tests import NcclTest as NcclTest
    from tplab.collectives.nccl_tests import nccl_frame as nccl_frame
    from tplab.collectives.nccl_tests import read_nccl as read_nccl
    from tplab.collectives.one_shot import one_shot_all_reduce as one_shot_all_reduce
    from tplab.collectives.peer_memory import PeerMemory as PeerMemory
    from tplab.collectives.peer_memory import all_reduce_add_rms_norm as all_reduce_add_rms_norm
    from tplab.collectives.point_to_point import fit_link as fit_link
    from tplab.collectives.point_to_point import measure_point_to_point as measure_point_to_point
    from tplab.collectives.quantised import int8_all_reduce as int8_all_reduce
    from tplab.collectives.quantised_sweep import compare_quantised as compare_quantised
    from tplab.collectives.recursive_doubling import recursive_doubling_all_reduce as recursive_doubling_all_reduce
    from tplab.collectives.ring import ring_all_reduce as ring_all_reduce
    from tplab.collectives.sweep import submit_sweep as submit_sweep
    from tplab.collectives.sweep import sweep_all_reduce as sweep_all_reduce
    from tplab.collectives.sweep import sweep_frame as sweep_frame
    from tplab.collectives.sweep_plan import plan_crossover as plan_crossover
    from tplab.collectives.sweep_plan import plan_sweep as plan_sweep
    from tplab.collectives.two_shot import two_shot_all_reduce as two_shot_all_reduce
    from tplab.collectives.volumes import pp_forward_bytes as pp_forward_bytes
    from tplab.collectives.volumes import sent_bytes as sent_bytes
    from tplab.collectives.volumes import tp_forward_bytes as tp_forward_bytes
    from tplab.collectives.volumes import tp_over_pp as tp_over_pp

__getattr__, __dir__, __all__ = lazy_names(__name__)
