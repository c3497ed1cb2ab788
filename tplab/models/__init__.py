"""Decoder-only models from Hugging Face checkpoints, tensor and pipeline parallel.

What it is (pure: no torch, for the notebook's kernel):
  spec          a model as numbers, and as an engine serves it
  hf, keys      what is read from a config.json, and what is refused; rope: how its positions are stretched
  precision     types of numbers, and which an engine takes for a checkpoint
  served, presets   configurations for the advisor: by name; wrappers: the language model inside; experts: is it dense?
  tokenizer     text to tokens and back, for the model that comes with tplab; trained: where that is
  records       what is asked of it, what a rank sends back, what can go wrong with a checkpoint
What it should cost (pure):
  shards        which layers and which slices a rank holds; bytes of weights, keys and values there
On the ranks:
  decoder       one rank's part of the model; rotary: its rotary frequencies
  small_decoder   the model of an exercise, drawn, cut into parts, and computed whole
  checkpoint    safetensors read by slices, made up by seed, written
  loading       a model onto the ranks, once
  engine        prefill and decode, micro-batches in flight
  ready         an engine with its caches and CUDA graphs, on all ranks or none (together)
  graphed       decode steps, replayed from CUDA graphs
  sampling      tokens chosen from logits
  reading       their way to the host, a step later
What it does cost, and the one call:
  generation    a model on a cluster, prompts in, tokens and their cost out
  result        tokens, times, shares, trace
  beside        the same prompts in several layouts, in one run
  counting      collectives and messages of a step, counted in a real run

Public names load on first use.
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.models.beside import layouts_of as layouts_of
    from tplab.models.beside import submit_beside as submit_beside
    from tplab.models.checkpoint import RandomWeights as RandomWeights
    from tplab.models.checkpoint import save_checkpoint as save_checkpoint
    from tplab.models.counting import count_generation as count_generation
    from tplab.models.counting import explain_counts as explain_counts
    from tplab.models.generation import generate as generate
    from tplab.models.generation import submit_generate as submit_generate
    from tplab.models.generation import unload as unload
    from tplab.models.records import CheckpointError as CheckpointError
    from tplab.models.result import Generation as Generation
    from tplab.models.result import compare as compare
    from tplab.models.shards import Layout as Layout
    from tplab.models.shards import kv_bytes_per_token as kv_bytes_per_token
    from tplab.models.shards import weight_bytes as weight_bytes
    from tplab.models.spec import ModelConfig as ModelConfig
    from tplab.models.spec import ModelSpec as ModelSpec
    from tplab.models.tokenizer import Tokenizer as Tokenizer
    from tplab.models.trained import trained_model as trained_model

__getattr__, __dir__, __all__ = lazy_names(__name__)
