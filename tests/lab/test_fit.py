"""Will it fit, as Python has it; the browser's side is in tests/browser/test_pictures_fit.py."""

import json

import pytest

from tplab.lab import WillItFit
from tplab.models.presets import MODELS
from tplab.topology.advisor.engine_memory import engine_memory


def test_it_knows_every_model_by_name_and_stays_small() -> None:
    fit = WillItFit()
    assert list(fit.known["models"]) == list(MODELS)
    assert len(json.dumps(fit.state())) < 100_000
    assert engine_memory("generic").share == "all"  # the browser knows no other


def test_the_number_of_requests_is_the_memory_models() -> None:
    fit = WillItFit().ask(model="llama-3.1-8b", gpu="h100", context=8192)
    # 76.5 GB less 16.06 of weights, 1.33 of activations and 0.3 of workspace, over 8192 tokens of 131,072 bytes
    assert fit.max_requests == 54
    assert fit.ask(cache="fp8").max_requests in (2 * 54, 2 * 54 + 1)
    assert WillItFit().ask(model="llama-3.1-405b", gpu="l4").max_requests == 0


def test_it_offers_the_models_that_are_named() -> None:
    fit = WillItFit(models=["qwen3-8b", "gemma-2-9b"])
    assert list(fit.known["models"]) == ["qwen3-8b", "gemma-2-9b"]
    assert fit.model == "qwen3-8b"


@pytest.mark.parametrize(
    ("match", "bad"),
    [
        ("model must be one of .*llama-3.1-8b.*; got 'llama-9'", {"model": "llama-9"}),
        ("gpu must be one of .*h100.*; got 'tpu'", {"gpu": "tpu", "batch": 2}),
        ("batch must be a whole number from 1 to 1,024; got 0", {"batch": 0}),
        ("colour is not a setting: there are model, gpu, weights", {"colour": 1}),
        ("tp must divide the model's 32 query heads: use 1, 2, 4", {"tp": 3}),
        ("pp must be a whole number from 1 to 16; got 40", {"pp": 40}),
    ],
)
def test_ask_names_what_is_offered_and_changes_nothing(match: str, bad: dict[str, object]) -> None:
    fit = WillItFit()
    before = fit.state()
    with pytest.raises(ValueError, match=match):
        fit.ask(**bad)
    assert fit.state() == before


@pytest.mark.parametrize(
    ("match", "models"), [("at least one", []), ("models must be one of .*; got 'gpt-9'", ["gpt-9"])]
)
def test_models_must_be_known(match: str, models: list[str]) -> None:
    with pytest.raises(ValueError, match=match):
        WillItFit(models=models)
