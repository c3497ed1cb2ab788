"""Pipelines: schedules as data, checked, simulated and run.

What it is:
  schedule      actions, and tables of them; schedule_text reads the text of torch's and of spreadsheets
  build         tables by name; training and inference have the order of work of each
  communication sends and receives added to a table, and taken out again
  validation    does a table run, and right? faults has what can be wrong, and how it is shown;
                misread what a table may be instead
  table         a schedule by stage and micro-batch, and what waits for what
  article       PipelineConfig and PipelineScheduler, as the article calls them
  mistakes      the wrong versions, for notebook 05 and the tests that catch them
What it should cost (pure: no process group, no cluster, no torch):
  costs         times and bytes of the parts
  simulation    when everything starts and ends; progress is its loop
  formulas      the same in closed form, where there is one
What it does cost (on a cluster):
  run           any table on real ranks, or on ranks that only wait; job is what they are handed
  executor      one rank's row, interpreted; stages and clock are its parts
  channels      messages in the table's order, over routes
  split_backward  I and W, from one graph
  blocks        stages of a real model's shape
  cases         several tables in one run
  serving       prefill, chunked prefill and decoding ring: formula, simulation, run
Both give a
  trace         what ran when, simulated or measured

Public names load on first use: the pure modules serve the notebook's kernel, which does without torch.
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.pipeline.article import PipelineConfig as PipelineConfig
    from tplab.pipeline.article import PipelineScheduler as PipelineScheduler
    from tplab.pipeline.blocks import BlockStages as BlockStages
    from tplab.pipeline.blocks import block_stages as block_stages
    from tplab.pipeline.build import SCHEDULES as SCHEDULES
    from tplab.pipeline.build import build_schedule as build_schedule
    from tplab.pipeline.cases import case_traces as case_traces
    from tplab.pipeline.cases import submit_cases as submit_cases
    from tplab.pipeline.communication import add_communication as add_communication
    from tplab.pipeline.communication import drop_communication as drop_communication
    from tplab.pipeline.costs import Costs as Costs
    from tplab.pipeline.costs import measured_costs as measured_costs
    from tplab.pipeline.faults import Fault as Fault
    from tplab.pipeline.faults import ScheduleError as ScheduleError
    from tplab.pipeline.faults import grid_text as grid_text
    from tplab.pipeline.formulas import best_num_micro_batches as best_num_micro_batches
    from tplab.pipeline.formulas import claimed_gpipe_bubble as claimed_gpipe_bubble
    from tplab.pipeline.formulas import decode_in_flight_needed as decode_in_flight_needed
    from tplab.pipeline.formulas import idle_over_total as idle_over_total
    from tplab.pipeline.formulas import makespan_s as makespan_s
    from tplab.pipeline.formulas import prefill_makespan_s as prefill_makespan_s
    from tplab.pipeline.job import RunPlan as RunPlan
    from tplab.pipeline.job import StageError as StageError
    from tplab.pipeline.mistakes import interleaved_in_name_only as interleaved_in_name_only
    from tplab.pipeline.mistakes import one_micro_batch_too_many as one_micro_batch_too_many
    from tplab.pipeline.run import MeasuredTrace as MeasuredTrace
    from tplab.pipeline.run import run_schedule as run_schedule
    from tplab.pipeline.run import run_trace as run_trace
    from tplab.pipeline.run import submit_schedule as submit_schedule
    from tplab.pipeline.schedule import Action as Action
    from tplab.pipeline.schedule import MicroBatch as MicroBatch
    from tplab.pipeline.schedule import Op as Op
    from tplab.pipeline.schedule import Schedule as Schedule
    from tplab.pipeline.serving import ChunkedPrefillPlan as ChunkedPrefillPlan
    from tplab.pipeline.serving import DecodePlan as DecodePlan
    from tplab.pipeline.serving import PrefillPlan as PrefillPlan
    from tplab.pipeline.serving import batch_of as batch_of
    from tplab.pipeline.serving import measure_serving as measure_serving
    from tplab.pipeline.serving import serving_frame as serving_frame
    from tplab.pipeline.serving import submit_serving as submit_serving
    from tplab.pipeline.simulation import simulate as simulate
    from tplab.pipeline.trace import Span as Span
    from tplab.pipeline.trace import Trace as Trace
    from tplab.pipeline.validation import validate as validate

__getattr__, __dir__, __all__ = lazy_names(__name__)
