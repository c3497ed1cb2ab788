"""The checker of 07-place, against right answers, an empty one and planted wrong ones."""

import random
import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from tplab.lab.exercises import check_place
from tplab.lab.exercises.placement import PCIE_WORDS, Topology, _topologies
from tplab.topology import Machine, place

GPU_OF = {"a DGX-1": "v100-32gb", "four GPUs on NVSwitch": "h100"}
"""Which GPU has such links, by the machine's description; else an A100 on PCIe."""


def words_of(topo: str) -> list[list[str]]:
    rows = [row for row in map(str.split, topo.splitlines()) if row and row[0].startswith("GPU") and "X" in row]
    return [row[1 : 1 + len(rows)] for row in rows]


def speed(words: list[list[str]], pair: tuple[int, int]) -> int:
    word = words[pair[0]][pair[1]]
    return int(word[2:]) if word.startswith("NV") else -PCIE_WORDS.index(word)


def two_pairs(words: list[list[str]]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    pairs = combinations(range(len(words)), 2)
    return [(a, b) for a, b in combinations(pairs, 2) if not {*a} & {*b}]


def exhaustive(topo: str) -> Any:
    words = words_of(topo)
    return max(two_pairs(words), key=lambda groups: min(speed(words, group) for group in groups))


def by_machine(topo: str) -> Any:
    """The project's own search."""
    v100 = "NV2" in topo and "NV1\t" in topo.replace(" ", "")
    return place(Machine.from_topo(topo, gpu="v100-32gb" if v100 else "h100"), 2, 2, 1).groups[0]


@pytest.mark.parametrize(
    "form",
    [
        list,
        torch.tensor,
        lambda groups: np.array(groups) * 1.0,
        lambda groups: [[f"gpu{gpu}" for gpu in group] for group in groups],
    ],
)
def test_all_choices_tried_pass_in_every_form(form: Callable[[Any], Any]) -> None:
    for _ in range(10):  # numbers are dealt anew each time
        verdict = check_place(lambda topo: form(exhaustive(topo)))
        assert verdict.passed, verdict.message
    assert "on 8 machines" in verdict.message


def test_the_projects_own_search_passes() -> None:
    verdict = check_place(by_machine)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize("seed", range(5))
def test_texts_are_read_as_what_they_were_made_of(seed: int) -> None:
    for topology in _topologies(random.Random(seed)):
        machine = Machine.from_topo(topology.text(), gpu=GPU_OF.get(topology.what, "a100-pcie"))
        labels = [[link.label if link else "X" for link in row] for row in machine.links]
        assert labels == [list(row) for row in topology.words]
        assert len(machine.nics) == topology.nics
        chosen = place(machine, 2, 2, 1).groups[0]
        assert topology.speed(topology.slowest(topology.best())) == topology.speed(topology.slowest(chosen))


def test_the_order_of_numbers_is_right_on_one_machine_and_where_all_are_alike() -> None:
    for seed in range(10):
        fine = [each.what for each in _topologies(random.Random(seed)) if as_good(each, ((0, 1), (2, 3)))]
        assert sorted(fine) == ["four GPUs on NVSwitch", "four GPUs with two bridges"]


def as_good(topology: Topology, groups: Any) -> bool:
    return topology.speed(topology.slowest(groups)) == topology.speed(topology.slowest(topology.best()))


def fastest_first(topo: str) -> Any:
    words = words_of(topo)
    pairs = sorted(combinations(range(len(words)), 2), key=lambda pair: -speed(words, pair))
    return pairs[0], next(pair for pair in pairs if not {*pair} & {*pairs[0]})


def largest_sum(topo: str) -> Any:
    words = words_of(topo)
    return max(two_pairs(words), key=lambda groups: sum(10.0 ** speed(words, group) for group in groups))


def first_digit(topo: str) -> Any:
    """Reads one digit: NV4 above NV12."""
    words = [[word[:3] if word.startswith("NV") else word for word in row] for row in words_of(topo)]
    return max(two_pairs(words), key=lambda groups: min(speed(words, group) for group in groups))


def as_text(topo: str) -> Any:
    """Compares words as text: NV2 above NV12."""
    words = words_of(topo)
    return max(two_pairs(words), key=lambda groups: min(words[a][b] for a, b in groups))


def nics_count_as_gpus(topo: str) -> Any:
    rows = [row for row in map(str.split, topo.splitlines()) if row and "X" in row and row[0] != "X"]
    words = [row[1 : 1 + len(rows)] for row in rows]
    return max(two_pairs(words), key=lambda groups: min(speed(words, group) for group in groups))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda topo: [(0, 1), (2, 3)], r"you take GPU0 with GPU1 and GPU2 with GPU3; between "),
        (lambda topo: [(0, 3), (1, 2)], r"you take GPU0 with GPU3 and GPU1 with GPU2; between GPU\d and GPU\d lies"),
        (fastest_first, "The fastest pair is worth nothing if it leaves a slow one"),
        (largest_sum, "The fastest pair is worth nothing if it leaves a slow one"),
        (first_digit, "lies NV4, and with other groups the slowest link is NV12"),
        (as_text, "with other groups the slowest link is"),
        (nics_count_as_gpus, "is no GPU of this machine"),
        (lambda topo: None, r"must return two groups of two GPUs, such as \[\(0, 2\), \(1, 3\)\]; it returned None"),
        (lambda topo: [0, 1, 2, 3], r"it returned \[0, 1, 2, 3\]"),
        (lambda topo: [(0, 1, 2, 3)], r"it returned \[\(0, 1, 2, 3\)\]"),
        (lambda topo: [(0, 1), (1, 2)], "GPU1 is there twice"),
        (lambda topo: [(0, 1), (2, 9)], r"9 is no GPU of this machine: they are GPU0 to GPU\d"),
        (lambda topo: torch.tensor([[[0, 1], [2, 3]]] * 2), r"tensor\(\[0, 1\]\) is no GPU"),
        (lambda topo: [(False, True), (2, 3)], "False is no GPU"),
        (lambda topo: [("GPU0", "NIC0"), (2, 3)], "'NIC0' is no GPU"),
        (lambda topo: "GPU0", "it returned 'GPU0'"),
        (lambda topo: topo[10**6], "line 1 of <lambda>: IndexError"),
    ],
)
def test_wrong_answers(wrong: Any, says: str) -> None:
    verdict = check_place(wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message
    assert "\n" not in verdict.message
    assert "GPU0" in verdict.details  # the table that it is about
