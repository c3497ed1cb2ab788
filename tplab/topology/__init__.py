"""Machines, models and the layouts that fit them: read the links, predict, recommend, verify.

  machine        GPUs and the link of every pair: presets, ``nvidia-smi topo -m``, NVML; placement on them
  advisor        what a layout should cost, which to run and why (pure: no torch, no process group)
  capacity       does a model fit, and on what? One sentence, and what to change
  calibration    the machine's links and processors, measured
  verification   layouts run for real beside their predictions; everything for one machine in one call (``box``)
  published      published measurements: constants fitted to them, the model's own error, the user's own server

Each room uses those above it only. Not ``calibrate`` and ``verify``: a package of a public function's name would take
its place as soon as somebody imports it. Public names load on first use.
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.topology.advisor import Advice as Advice
    from tplab.topology.advisor import Calibration as Calibration
    from tplab.topology.advisor import Choice as Choice
    from tplab.topology.advisor import CommunicationTopology as CommunicationTopology
    from tplab.topology.advisor import EnginePolicy as EnginePolicy
    from tplab.topology.advisor import Layout as Layout
    from tplab.topology.advisor import ModelSpec as ModelSpec
    from tplab.topology.advisor import Prediction as Prediction
    from tplab.topology.advisor import Workload as Workload
    from tplab.topology.advisor import advise as advise
    from tplab.topology.advisor import all_choices as all_choices
    from tplab.topology.advisor import beside_claimed as beside_claimed
    from tplab.topology.advisor import feasible_choices as feasible_choices
    from tplab.topology.advisor import predict as predict
    from tplab.topology.advisor.arrivals import Arrivals as Arrivals
    from tplab.topology.advisor.arrivals import simulate_arrivals as simulate_arrivals
    from tplab.topology.advisor.launch_commands import ENGINES as ENGINES
    from tplab.topology.advisor.memory import max_requests as max_requests
    from tplab.topology.calibration import calibrate as calibrate
    from tplab.topology.calibration import calibration_of_nccl as calibration_of_nccl
    from tplab.topology.calibration import submit_calibrate as submit_calibrate
    from tplab.topology.capacity import Change as Change
    from tplab.topology.capacity import Fit as Fit
    from tplab.topology.capacity import fits as fits
    from tplab.topology.capacity import offers as offers
    from tplab.topology.machine import Gpu as Gpu
    from tplab.topology.machine import Link as Link
    from tplab.topology.machine import Machine as Machine
    from tplab.topology.machine import Placement as Placement
    from tplab.topology.machine import place as place
    from tplab.topology.machine import placement_of as placement_of
    from tplab.topology.machine.spec_sheets import GPUS as GPUS
    from tplab.topology.published import Benchmark as Benchmark
    from tplab.topology.published import beside_benchmark as beside_benchmark
    from tplab.topology.published import beside_vllm as beside_vllm
    from tplab.topology.published import layout_choice as layout_choice
    from tplab.topology.published import read_benchmark as read_benchmark
    from tplab.topology.published import read_vllm as read_vllm
    from tplab.topology.published import validate as validate
    from tplab.topology.verification import Verification as Verification
    from tplab.topology.verification import machine_of as machine_of
    from tplab.topology.verification import predict_batch as predict_batch
    from tplab.topology.verification import submit_verify as submit_verify
    from tplab.topology.verification import verify as verify
    from tplab.topology.verification.box_layouts import scores as scores
    from tplab.topology.verification.memory import ShardPlan as ShardPlan
    from tplab.topology.verification.memory import measure_shards as measure_shards
    from tplab.topology.verification.step_profile import StepProfile as StepProfile
    from tplab.topology.verification.step_profile import profile_step as profile_step
    from tplab.topology.verification.step_profile import submit_profile as submit_profile

__getattr__, __dir__, __all__ = lazy_names(__name__)
