"""*Does my model fit, and on what?*, without a browser: the answer is that of ``fits``, and what helps is a button."""

import json
from collections.abc import Iterator

import pytest

from tplab import fits
from tplab.lab import FitPanel, WillItFit
from tplab.lab.panels import fits as module
from tplab.topology import Machine
from tplab.topology.capacity import offers

CONFIG = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "intermediate_size": 8192, "torch_dtype": "bfloat16",
    "max_position_embeddings": 131072,
}  # fmt: skip


@pytest.fixture
def panel() -> Iterator[FitPanel]:
    panel = FitPanel()
    yield panel
    panel.close()


def test_the_answer_is_that_of_fits(panel: FitPanel) -> None:
    panel.show(model="qwen3-14b", gpu="l40s", users=40, context=4096, weights="fp8", engine="sglang", share=0.85)
    how = {"users": 40, "context": 4096, "precision": "fp8", "engine": "sglang", "gpu_memory_utilization": 0.85}
    assert panel.fit is not None
    assert panel.fit.as_dict() == fits("qwen3-14b", "l40s", **how).as_dict()
    assert panel.fit.sentence in panel.below.replace("&#x27;", "'")
    assert [fit.sentence for fit in panel.others] == [fit.sentence for fit in offers("qwen3-14b", **how)]
    assert panel.figure is not None
    assert panel.error == ""


def test_what_would_help_is_a_button_and_its_bar(panel: FitPanel) -> None:
    panel.show(model="llama-3.1-8b", gpu="rtx-3090", users=40)
    assert panel.fit is not None
    assert panel.fit.fits is False
    changes = panel.fit.changes
    assert [button.description for button in panel._ways.children[1:]] == [change.words for change in changes]
    bars = [label.replace("<br>", " ").replace("\u00a0", " ") for label in panel.figure.data[0].x]
    assert bars[:2] == ["as asked", changes[0].words]
    for number, change in enumerate(changes, start=1):
        panel.show(
            model="llama-3.1-8b",
            gpu="rtx-3090",
            gpus=1,
            users=40,
            context=8192,
            weights="as in the files",
            cache="as computed",
        )
        panel._ways.children[number].click()
        assert panel.error == ""
        assert panel.fit.fits is True, change
    assert panel._ways.children == ()


def test_a_pasted_configuration_goes_before_the_name_and_is_never_html(panel: FitPanel) -> None:
    panel.show(config=json.dumps(CONFIG))
    assert panel.fit is not None
    assert panel.fit.rank.weights == fits(CONFIG, "rtx-3090").rank.weights
    kept = panel.figure
    for pasted, why in [
        ("{bad", "config is not valid JSON"),
        ("[1, 2]", "in braces"),
        ('"llama-3.1-8b"', "in braces"),
        ("null", "in braces"),
        ('{"model_type": "<img src=x onerror=alert(1)>"}', "&lt;img"),
        (json.dumps(CONFIG | {"num_key_value_heads": 5}), "num_key_value_heads"),
        ("[" * 5000, "config"),
    ]:
        panel.show(config=pasted)
        assert why in panel.error
        assert "<img" not in panel.error
        assert panel.figure is kept
        assert panel._ways.children == ()
    assert panel.show(config="").error == ""


@pytest.mark.parametrize(
    ("match", "bad"), [("gpu must be one of", {"gpu": "tpu"}), ("users", {"users": 0}), ("not a setting", {"tp": 2})]
)
def test_show_names_what_is_offered(panel: FitPanel, match: str, bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=match):
        panel.show(**bad)


def test_a_name_that_nobody_knows_is_said_in_place(panel: FitPanel) -> None:
    panel.show(model="no-such-model")
    assert "no-such-model" in panel.error
    assert panel.show(model="Llama-3.1-70B-Instruct", gpu="h200", gpus=2).fit.fits is True


def test_it_begins_with_the_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_local", lambda: Machine.preset("h200", gpus=4))
    panel = FitPanel().show(gpus=2)
    assert panel.fit is not None
    assert (panel.fit.gpu.name, panel.fit.gpus) == ("h200", 2)
    assert "this machine" in panel._named["gpu"].options[0][0]
    assert "at most 4" in panel.show(gpus=8).error


@pytest.mark.parametrize(("model", "gpu", "tp"), [("llama-3.1-8b", "h100", 1), ("qwen3-14b", "rtx-3090", 4)])
def test_the_picture_has_the_same_numbers(model: str, gpu: str, tp: int) -> None:
    """``WillItFit`` asks of an engine that nobody has measured, and of one layout; ``fits``, for more users than such
    an engine runs at once, lets it sample more rows."""
    for context in (4096, 16384):
        picture = WillItFit().ask(model=model, gpu=gpu, tp=tp, context=context)
        fit = fits(model, gpu, tp, context=context, engine="generic")
        assert (fit.tp, fit.pp) == (tp, 1)
        assert picture.max_requests == fit.max_users


def test_nothing_is_no_model() -> None:
    with pytest.raises(ValueError, match="model must be a name, a path"):
        fits(None, "h100")  # type: ignore[arg-type]
