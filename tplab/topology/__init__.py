"""Machines, models and the layouts that fit them: read the links, predict, recommend, verify.

What is given:
  model_spec, hf_config      a model's sizes, from config.json or a preset
  workload                   requests and how the engine runs them
  machine, presets           GPUs and the link of every pair
  topo_text, detect          the same read from ``nvidia-smi topo -m``, from NVML
What it should cost (pure: no torch, no process group):
  sharding, memory           a layout; weights, cache, activations and workspace of any of its ranks
  layouts                    which TP x PP x replicas are possible, and why not
  placement                  which GPUs share a layer, which are neighbours in the pipeline
  constants, calibration     the model's numbers with their sources; what was measured here instead
  calibration_check          whether that can be of the machine
  roofline, allreduce, pipeline_fill, admission, columns, latency   time per token and to the first one, by named terms
  prediction                 predict: one layout, its terms, their provenance, an interval (prediction_notes)
  advisor, flips             advise: every layout ranked, why not the others, where the choice flips
  launch_commands            how to start it with vLLM, SGLang, TensorRT-LLM
  tables, fit, scoreboard    published measurements: the constants fitted to them; validate: the model's own error
  static_batch               the same for one batch through the lab's own engine, on a machine that was calibrated
  vllm_bench                 the user's own server beside the prediction
  article                    CommunicationTopology, as the article calls it
What it does cost (on the ranks of a cluster):
  calibrating                calibrate: links, matmuls, overheads (calibrate_plan, measure_..., calibrated)
  verifying                  verify: layouts run for real, beside predictions (verify_plan, rigging, measure_layouts)
  box, box_layouts           everything on a machine with several GPUs, in one call

Public names load on first use.
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.topology.advisor import Advice as Advice
    from tplab.topology.advisor import advise as advise
    from tplab.topology.article import CommunicationTopology as CommunicationTopology
    from tplab.topology.calibrating import calibrate as calibrate
    from tplab.topology.calibrating import submit_calibrate as submit_calibrate
    from tplab.topology.calibration import Calibration as Calibration
    from tplab.topology.layouts import Choice as Choice
    from tplab.topology.layouts import all_choices as all_choices
    from tplab.topology.layouts import feasible_choices as feasible_choices
    from tplab.topology.machine import Gpu as Gpu
    from tplab.topology.machine import Link as Link
    from tplab.topology.machine import Machine as Machine
    from tplab.topology.model_spec import ModelSpec as ModelSpec
    from tplab.topology.placement import Placement as Placement
    from tplab.topology.placement import place as place
    from tplab.topology.prediction import Prediction as Prediction
    from tplab.topology.prediction import predict as predict
    from tplab.topology.scoreboard import layout_choice as layout_choice
    from tplab.topology.scoreboard import validate as validate
    from tplab.topology.sharding import Layout as Layout
    from tplab.topology.static_batch import machine_of as machine_of
    from tplab.topology.static_batch import predict_batch as predict_batch
    from tplab.topology.verifying import Verification as Verification
    from tplab.topology.verifying import submit_verify as submit_verify
    from tplab.topology.verifying import verify as verify
    from tplab.topology.vllm_bench import beside_vllm as beside_vllm
    from tplab.topology.vllm_bench import read_vllm as read_vllm
    from tplab.topology.workload import EnginePolicy as EnginePolicy
    from tplab.topology.workload import Workload as Workload

_HOME_OF = {
    "Advice": "advisor",
    "Calibration": "calibration",
    "Choice": "layouts",
    "CommunicationTopology": "article",
    "EnginePolicy": "workload",
    "Gpu": "machine",
    "Layout": "sharding",
    "Link": "machine",
    "Machine": "machine",
    "ModelSpec": "model_spec",
    "Placement": "placement",
    "Prediction": "prediction",
    "Verification": "verifying",
    "Workload": "workload",
    "advise": "advisor",
    "all_choices": "layouts",
    "beside_vllm": "vllm_bench",
    "calibrate": "calibrating",
    "feasible_choices": "layouts",
    "layout_choice": "scoreboard",
    "machine_of": "static_batch",
    "place": "placement",
    "predict": "prediction",
    "predict_batch": "static_batch",
    "read_vllm": "vllm_bench",
    "submit_calibrate": "calibrating",
    "submit_verify": "verifying",
    "validate": "scoreboard",
    "verify": "verifying",
}

__all__ = sorted(_HOME_OF)

__getattr__, __dir__ = lazy_names(__name__, _HOME_OF)
