"""Numbers as people read them, with their units; names of what the lab knows by a key."""

import ast
import math
import re
from pathlib import Path

import pytest

import tplab.lab
from tplab.models.presets import MODELS
from tplab.pipeline.build import INFERENCE, TRAINING
from tplab.shown import bytes_text, number, time_text
from tplab.topology.machine.names import name_of, offered
from tplab.topology.machine.presets import MACHINES
from tplab.topology.machine.spec_sheets import GPUS

LAB = Path(tplab.lab.__file__).parent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.26e3, "1,260"),
        (1234.6, "1,235"),
        (420.0, "420"),
        (12.34, "12.3"),
        (9.996, "10"),
        (9.5, "9.5"),
        (0.0123, "0.0123"),
        (1e-9, "0.000000001"),
        (2.5e12, "2,500,000,000,000"),
        (-3.14159, "-3.14"),
        (0, "0"),
        (math.inf, "∞"),
        (math.nan, "not a number"),
    ],
)
def test_a_number_has_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0.5, "0.5 µs"),
        (999.4, "999 µs"),
        (999.6, "1 ms"),
        (1260, "1.26 ms"),
        (5000, "5 ms"),
        (3e6, "3 s"),
        (7.2e9, "7,200 s"),
    ],
)
def test_a_time_is_in_the_unit_that_suits_it(us: float, text: str) -> None:
    assert time_text(us) == text


def test_bytes_are_in_the_unit_that_suits_them() -> None:
    sizes = {512: "512 B", 1023: "1,023 B", 1024: "1 KiB", 65536: "64 KiB", 1.5 * 2**20: "1.5 MiB", 2**50: "1,024 TiB"}
    assert {size: bytes_text(size) for size in sizes} == sizes
    assert bytes_text(1023.9 * 1024) == "1 MiB"  # and not 1,024 KiB


def test_no_text_of_the_lab_is_formatted_with_exponents() -> None:
    """``{value:.3g}`` says 1.26e+03 where ``number`` says 1,260; so do plotly's own labels."""
    found = []
    for path in sorted(path for room in ("figures", "panels") for path in (LAB / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            spec = node.format_spec if isinstance(node, ast.FormattedValue) else None
            of_python = spec is not None and ast.unparse(spec).endswith("g'")
            of_plotly = isinstance(node, ast.Constant) and re.search(r"%\{[^{}]*g\}", str(node.value)) is not None
            if of_python or of_plotly:
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


def test_every_key_has_a_name_of_its_own_and_other_texts_stay() -> None:
    for keys in (MODELS, GPUS, MACHINES, (*TRAINING, *INFERENCE)):
        names = [*map(name_of, keys)]
        assert len(set(names)) == len(names)
        assert all(name != key for name, key in zip(names, keys, strict=True))
    assert name_of("llama-3.1-70b") == "Llama 3.1 70B"
    assert name_of("v100-pcie-16gb") == "V100 PCIe 16 GB"
    assert name_of("mistral-7b-v0.1") == "Mistral 7B v0.1"
    assert name_of("my-own/model-70b") == "my-own/model-70b"
    assert offered(["vllm", "h100"]) == [("vLLM", "vllm"), ("H100", "h100")]
