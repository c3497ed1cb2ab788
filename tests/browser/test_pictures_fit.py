"""Will it fit: the browser's numbers are the memory model's, what it proposes does fit, and it is used by keyboard."""

import base64
import itertools
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tplab.lab.pictures import Picture
from tplab.lab.pictures.fit import WillItFit
from tplab.models.shards import Layout, can_cut
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.memory import fullest_rank, max_requests
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.spec_sheets import GPUS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

MODELS = ("llama-2-13b", "llama-3.2-3b", "llama-3.1-70b", "qwen2.5-7b", "mistral-7b-v0.1", "gemma-2-27b", "gpt-3-175b")
FIT = """async ([module, cases]) => {
  const fit = await import("data:text/javascript;base64," + module);
  const known = tplab.get("known");
  const one = (asked) => {
    if (fit.whyNotCut(known, asked)) return null;
    const rank = fit.fullestRank(known, asked, asked.batch);
    const parts = ["weights", "kv", "activations", "workspace", "usable"].map((part) => rank[part]);
    return [parts, fit.mostRequests(known, asked), fit.whatWouldHelp(known, asked), fit.fewerGpus(known, asked),
      fit.longestContext(known, asked)];
  };
  return JSON.stringify(JSON.parse(cases).map(one));
}"""


def told(page: Page, cases: list[dict[str, Any]]) -> list[Any]:
    module = files("tplab.lab.pictures").joinpath("modules", "fitmodel.js").read_bytes()
    found: list[Any] = json.loads(page.evaluate(FIT, [base64.b64encode(module).decode(), json.dumps(cases)]))
    return found


def in_python(asked: dict[str, Any]) -> tuple[ModelSpec, Workload, Layout]:
    spec = ModelSpec.from_config(asked["model"], weight_precision=asked["weights"], kv_precision=asked["cache"])
    workload = Workload(input_length=asked["context"] - 1, output_length=1, concurrency=asked["batch"])
    return spec, workload, Layout.of(spec, asked["tp"], asked["pp"])


def fits(asked: dict[str, Any]) -> bool:
    spec, workload, layout = in_python(asked)
    return fullest_rank(spec, GPUS[asked["gpu"]], workload, layout, requests=asked["batch"]).free >= 0


def test_its_numbers_are_the_memory_models(open_picture: Callable[[Picture], Page]) -> None:
    loads = [("bf16", "bf16", 16, 8192), ("fp8", "fp8", 1, 130), ("int4", "bf16", 300, 30000)]
    cuts = [(1, 1), (2, 1), (3, 2), (4, 7), (8, 16), (16, 1)]
    cases = [
        {"model": model, "gpu": gpu, "weights": weights, "cache": cache}
        | {"tp": tp, "pp": pp, "batch": batch, "context": context}
        for model, gpu, (weights, cache, batch, context), (tp, pp) in itertools.product(
            MODELS, ("h100", "rtx-3090", "a100-pcie-40gb", "mi300x"), loads, cuts
        )
    ]
    page = open_picture(WillItFit())
    possible = 0
    for asked, found in zip(cases, told(page, cases), strict=True):
        if not can_cut(ModelSpec.from_config(asked["model"]), asked["tp"], asked["pp"]):
            assert found is None, asked
            continue
        possible += 1
        spec, workload, layout = in_python(asked)
        rank = fullest_rank(spec, GPUS[asked["gpu"]], workload, layout, requests=asked["batch"])
        wanted = [rank.weights, rank.kv, rank.activations, rank.workspace, rank.usable]
        assert found[0] == pytest.approx(wanted, rel=1e-12), asked
        assert found[1] == max_requests(spec, GPUS[asked["gpu"]], workload, layout), asked
    assert possible > 300


def test_what_it_proposes_fits_and_no_more_would(open_picture: Callable[[Picture], Page]) -> None:
    loads = [(16, 8192), (64, 4096), (1, 100000), (700, 1024)]
    cases = [
        {
            "model": model,
            "gpu": gpu,
            "weights": "bf16",
            "cache": "bf16",
            "tp": tp,
            "pp": 1,
            "batch": batch,
            "context": context,
        }
        for model, gpu, tp, (batch, context) in itertools.product(MODELS[1:4], ("h100", "l4"), (1, 4), loads)
    ]
    proposed: set[str] = set()
    for asked, found in zip(cases, told(open_picture(WillItFit()), cases), strict=True):
        _, most, ways, fewer, longest = found
        if most:
            assert fits(asked | {"batch": most})
            assert not fits(asked | {"batch": most + 1})
        if 0 < longest < 1 << 21:
            assert fits(asked | {"context": longest})
            assert not fits(asked | {"context": longest + 16})
        if fewer:
            assert fewer["tp"] * fewer["pp"] < asked["tp"]
            assert fits(asked | fewer)
        if not fits(asked):
            for way in ways:
                assert fits(asked | way["change"]), (asked, way)
                proposed |= set(way["change"])
    assert proposed == {"context", "batch", "cache", "weights", "tp", "pp", "gpu"}


def height_of(page: Page, where: str) -> float:
    box = page.locator(where).bounding_box()
    return 0.0 if box is None else box["height"]


def test_it_fills_spills_and_says_what_to_change(open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(WillItFit().ask(model="llama-3.1-8b", gpu="h100"))
    status = page.get_by_role("status").first
    expect(page.get_by_text("It fits.")).to_be_visible()
    expect(status).to_contain_text("Llama 3.1 8B in bf16 fits on one H100 with 8 requests of 4,096 tokens")
    expect(page.locator(".drop")).to_have_count(0)
    batch = page.get_by_label("batch")
    before = status.text_content()
    batch.press("End")
    expect(status).to_contain_text("1,024 requests")
    assert status.text_content() != before
    expect(page.get_by_text("It does not fit.", exact=True)).to_be_visible()
    page.wait_for_function("document.querySelectorAll('.drop').length > 5")
    assert height_of(page, ".over") > 5
    # Each proposal is a button, and what it says becomes true.
    page.get_by_role("button", name="a batch of at most").press("Enter")
    expect(page.get_by_text("It fits.")).to_be_visible()
    assert page.evaluate("tplab.get('batch')") < 1024
    page.wait_for_function("document.querySelectorAll('.drop').length === 0")
    assert page.evaluate("tplab.get('answer')") == status.text_content()


def test_how_far_it_goes_stays_within_what_is_offered(open_picture: Callable[[Picture], Page]) -> None:
    fit = WillItFit().ask(gpu="b200", batch=1, context=16)
    page = open_picture(fit)
    page.get_by_role("button", name="a batch of 1,024 and more").click()
    fit.ask(batch=page.evaluate("tplab.get('batch')"))
    page.evaluate("tplab.set('batch', 1)")
    page.get_by_role("button", name="a context of 131,072 and more").click()
    fit.ask(context=page.evaluate("tplab.get('context')"))


def test_a_model_that_cannot_be_shared_so_takes_fewer_gpus(open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(WillItFit().ask(model="llama-3.1-8b", tp=8))
    page.get_by_label("model").select_option(label="Qwen2.5 7B")  # 28 heads
    expect(page.get_by_label("TP")).to_have_value("2")
    assert page.evaluate("tplab.get('tp')") == 4
    page.evaluate("tplab.set('tp', 8)")  # as a cell of a notebook could
    expect(page.get_by_text("Qwen2.5 7B cannot be shared by 8 GPUs: take TP 1, 2 or 4.")).to_be_visible()


def test_frames_are_short_and_less_motion_is_respected(
    open_picture: Callable[[Picture], Page], time_frames: Callable[[Page], None]
) -> None:
    page = open_picture(WillItFit().ask(gpu="h100", batch=1000))
    time_frames(page)
    page.get_by_label("context").press("Home")
    page.wait_for_timeout(600)
    spent = sorted(page.evaluate("spent"))
    assert len(spent) > 3
    assert spent[len(spent) // 2] < 4  # ms
    page.emulate_media(reduced_motion="reduce")
    page.evaluate("spent.length = 0")
    page.get_by_label("context").press("End")
    expect(page.get_by_text("It does not fit.", exact=True)).to_be_visible()
    assert page.evaluate("spent") == []


@pytest.mark.parametrize("width", [320, 600, 1600])
def test_nothing_is_cut(open_picture: Callable[[Picture], Page], width: int) -> None:
    page = open_picture(WillItFit().ask(model="llama-3.1-405b", gpu="rtx-pro-6000", batch=1000, context=100000))
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    outside = """() => { const all = document.querySelector("svg").getBoundingClientRect();
      const cut = (box) => box.left < all.left - 1 || box.right > all.right + 1 || box.bottom > all.bottom + 1;
      return [...document.querySelectorAll("svg text")].filter((e) => cut(e.getBoundingClientRect())).length; }"""
    assert page.evaluate(outside) == 0
