"""The advisor's properties over random inputs; ``tests/benchmarks/check_properties.py`` asks many more."""

from dataclasses import replace
from itertools import islice

import pytest

from tests.topology.advisor.inputs import cases
from tests.topology.advisor.properties import (
    PLAIN,
    PROPERTIES,
    Case,
    Violation,
    better_hardware_is_never_slower,
    more_memory_is_never_slower,
    terms_are_a_sum,
)
from tplab.topology import Machine, ModelSpec

INPUTS = 120
FITTING = [(case, made) for case in islice(cases(16), INPUTS) if (made := case.predict()).fits]


def too_much(found: Violation) -> bool:
    """What a sum, a flow or a rate must keep is exact. Of throughput a little may be lost where a measured curve bends
    or where decoding is done in more rounds than it needs; a step may be steep where one more request is one more pass.
    """
    if found.property[0] in "eghi":
        return True
    return found.amount > (0.2 if found.property[0] == "d" else 0.01)


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_holds_of_random_inputs(holds):
    assert [str(found) for case, made in FITTING for found in holds(case, made) if too_much(found)] == []


def test_a_fault_is_found():
    case = Case(model=ModelSpec.from_config("llama-3.1-8b"), machine=Machine.preset("h100"), workload=PLAIN)
    made = case.predict()
    assert [found.property for found in terms_are_a_sum(case, replace(made, tpot_ms=2 * made.tpot_ms))] == ["e: sum"]
    faster = replace(made, output_tokens_per_s=9 * made.output_tokens_per_s)
    assert all(map(too_much, more_memory_is_never_slower(case, faster)))
    assert {found.property for found in better_hardware_is_never_slower(case, faster)} == {
        "a: better HBM",
        "a: better FLOP/s",
    }
