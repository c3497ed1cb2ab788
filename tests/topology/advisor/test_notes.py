"""What was assumed of the engine is among a prediction's notes."""

import pytest

from tplab.topology import EnginePolicy, Machine, ModelSpec, Workload, predict

LLAMA = ModelSpec.from_config("llama-3.1-8b")


def notes(machine="h100", **engine):
    workload = Workload(input_length=512, output_length=64, concurrency=8, engine=EnginePolicy(**engine))
    return predict(LLAMA, Machine.preset(machine), workload, 2, 1).notes


@pytest.mark.parametrize(
    ("machine", "engine", "said"),
    [
        ("h100", "vllm", "prompts share the decode steps, at most 8,192 tokens a step, at most 1,024 requests at once"),
        ("a100", "vllm", "prompts share the decode steps, at most 8,192 tokens a step, at most 256 requests at once"),
        (
            "h100",
            "sglang",
            "prompts run in steps of their own before the next decode step, at most 8,192 tokens a step",
        ),
        ("h100", "trtllm", "at most 2,048 requests in a micro-batch (TensorRT-LLM"),
        ("h100", "fastertransformer", "a batch of requests starts and ends together, at most 8,192 tokens a step ("),
    ],
)
def test_policy_and_largest_batch_of_the_engine(machine, engine, said):
    assert sum(said in note for note in notes(machine, name=engine)) == 1


def test_what_was_asked_for_is_what_is_said():
    asked = {"prefill_policy": "static", "max_num_seqs": 12, "chunked_prefill": 2048, "speculative_tokens": 2}
    made = notes(name="vllm", acceptance=0.5, **asked)
    start = (
        "a batch of requests starts and ends together, at most 2,048 tokens a step, at most 12 requests at once on a "
    )
    assert any(note.startswith(start) for note in made)
    assert "2 tokens guessed a step, 1.75 gained with the model's own" in made
    assert not any("guessed" in note for note in notes(name="vllm"))
