"""Intervals: wide where little was checked, by the term and by what is new, and the line that says so."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tplab.topology import EnginePolicy, Machine, ModelSpec, Workload, advise, predict
from tplab.topology.advisor.constants import DEFAULT
from tplab.topology.advisor.interval import ASPECTS, NINETY, PARTS, Checked, Spread, Standing, family, shares_of
from tplab.topology.advisor.served import TERMS
from tplab.topology.machine.spec_sheets import GPUS

LLAMA = ModelSpec.from_config("llama-3.1-70b", weight_precision="fp8")
SPREAD = Spread(
    base=0.03,
    parts={"memory": 0.0, "overheads": 0.4, "messages": 0.0, "prompts": 0.0},
    new=dict(zip(ASPECTS, (0.04, 0.1, 0.2, 0.05, 0.06, 0.5, 0.3), strict=True)),
    calibrated=0.1,
)
ON_H100 = Checked(
    model="llama-3.1-70b", params=6.85e10, gpu="h100", engine="vllm", precision="fp8", tps=(2, 4, 8), pps=(1,),
    loads=(4, 64), inputs=(1024, 8192), outputs=(1024, 1024), num_cells=45, error_pct=9.04,
    how="with this model left out",
)  # fmt: skip


def stand(model=LLAMA, gpu="h100", engine="vllm", checked=(ON_H100,), **more):
    return Standing.of(checked, SPREAD, model, GPUS[gpu], engine, **{"split": False, "pipeline": False, **more})


def test_all_terms_have_a_part():
    assert sorted(name for names in PARTS.values() for name in names) == sorted(TERMS)
    shares = shares_of({name: np.array([1.0, 2.0]) for name in TERMS})
    assert sum(shares.values()) == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("asked", "new"),
    [
        ({}, ()),
        ({"model": ModelSpec.from_config("llama-3.1-8b", weight_precision="fp8")}, ("model",)),
        ({"model": ModelSpec.from_config("qwen2.5-72b", weight_precision="fp8")}, ("model",)),
        ({"model": replace(LLAMA, name="Llama-3.3-70B-Instruct")}, ()),
        ({"gpu": "h200"}, ("memory of the GPU",)),
        ({"gpu": "l40s"}, ("GPU",)),
        ({"engine": "sglang"}, ("engine",)),
        ({"model": ModelSpec.from_config("llama-3.1-70b")}, ("precision",)),
        ({"pipeline": True}, ("pipeline",)),
        ({"gpu": "a100", "engine": "generic", "measured": ("GPU", "precision")}, ("engine",)),
        ({"gpu": "l40s", "split": True}, ("GPU", "links")),
        ({"gpu": "h200", "split": True}, ("memory of the GPU",)),
        ({"checked": ()}, ASPECTS[:-2]),
    ],
)
def test_what_is_new_beside_what_was_checked(asked, new):
    assert stand(**asked).new == new


def test_the_nearest_leaves_the_narrowest_interval():
    other = replace(ON_H100, gpu="l40s", engine="sglang", num_cells=900)
    assert stand(gpu="l40s", checked=(ON_H100, other)).nearest is other  # an engine that is new costs less than a GPU
    assert stand(gpu="h200", checked=(ON_H100, other)).nearest is ON_H100
    more = replace(ON_H100, num_cells=46)
    assert stand(checked=(ON_H100, more)).nearest is more


def test_widths_follow_terms_and_what_is_new():
    shares = {"memory": np.array([1.0, 0.5]), "overheads": np.array([0.0, 0.5])} | dict.fromkeys(
        ("messages", "prompts"), np.zeros(2)
    )
    seen, new = stand().half_width(shares), stand(engine="sglang", gpu="l40s").half_width(shares)
    assert seen == pytest.approx([NINETY * 0.03, NINETY * math.hypot(0.03, 0.2)])
    assert new == pytest.approx(NINETY * np.sqrt([0.03**2 + 0.2**2, 0.03**2 + 0.2**2 + 0.05**2 + 0.2**2]))
    assert replace(stand(), calibrated=True).half_width(shares) == pytest.approx([NINETY * 0.1] * 2)


def test_families():
    names = ("meta-llama/Llama-3.1-70B", "llama-2-7b", "meta-llama-3-8b", "Qwen/Qwen3-32B", "qwen2.5-72b", "405b")
    assert [family(name) for name in names] == ["llama", "llama", "llama", "qwen", "qwen", "405b"]


def test_the_line():
    assert str(stand(gpu="l40s", pipeline=True)) == (
        "Nearest that was checked: llama-3.1-70b fp8 on h100 with vLLM, TP 2-8, 45 measurements: "
        "9 % off with this model left out; new here: GPU, pipeline."
    )
    assert str(stand()).endswith("; nothing is new here.")
    assert stand(gpu="l40s").regime == "checked: model, engine, memory of the GPU, precision, links, pipeline; new: GPU"
    assert str(stand(checked=())) == "Nothing like it was checked."
    assert str(replace(stand(), calibrated=True)) == (
        "Every term was measured on this machine: nine of ten such predictions were within 17.9 %."
    )


def test_what_is_in_use_has_a_form():
    assert set(DEFAULT.spread.parts) == set(PARTS)
    assert set(DEFAULT.spread.new) == set(ASPECTS)
    assert min(DEFAULT.spread.base, *DEFAULT.spread.parts.values(), *DEFAULT.spread.new.values()) > 0
    assert len(DEFAULT.checked) > 3
    for one in DEFAULT.checked:
        assert one.engine in DEFAULT.engines
        assert one.gpu in GPUS
        assert one.num_cells > 0
        assert 0 < one.error_pct < 100
        assert one.how


def test_advice_says_it():
    load = Workload(input_length=1024, output_length=128, concurrency=16, engine=EnginePolicy(name="vllm"))
    known, other = (advise(LLAMA, Machine.preset(gpu), load) for gpu in ("h100", "l40s"))
    assert f"\n{known.best.prediction.standing}\n" in f"{known}\n"
    low, high = known.best.prediction.tpot_range_ms
    far_low, far_high = other.best.prediction.tpot_range_ms
    assert far_high / far_low > 1.1 * high / low  # the GPU is new
    small = predict(ModelSpec.from_config("llama-3.2-1b", weight_precision="fp8"), Machine.preset("h100"), load, 8, 1)
    large = predict(LLAMA, Machine.preset("h100"), load, 2, 1)
    ratios = [made.tpot_range_ms[1] / made.tpot_ms for made in (small, large)]
    assert ratios[0] > ratios[1] > 1
