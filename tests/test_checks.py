"""Arguments checked one by one: what passes, what is refused, and errors that can be said under another name."""

import math
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from tplab import checks
from tplab.checks import ArgumentError


@pytest.mark.parametrize(
    ("check", "given"),
    [
        (lambda value: checks.check_count("n", value, least=1, most=4), [1, 4, np.int64(2), np.uint8(3)]),
        (lambda value: checks.check_number("s", value, least=0), [0, 0.0, 10**18, np.float32(1.5), Fraction(1, 3)]),
        (lambda value: checks.check_number("s", value, above=0, most=1), [1, 1e-300, np.int64(1)]),
        (lambda value: checks.check_number("s", value, above=0, most=math.inf), [math.inf, 1]),
        (lambda value: checks.check_one_of("mode", value, ("eager", None)), ["eager", None]),
        (lambda value: checks.check_flag("flag", value), [True, False]),
        (lambda value: checks.check_text("text", value), ["", "a"]),
        (lambda value: checks.check_all_of("steps", value, {"a": 1, "b": 2}), [["a"], ["b", "a"]]),
    ],
)
def test_what_may_be_comes_back(check, given):
    assert [check(value) for value in given] == given


def test_a_count_of_numpy_becomes_one_of_python_and_several_names_become_a_list():
    assert type(checks.check_count("n", np.int8(100))) is int
    assert checks.check_all_of("steps", (name for name in "ab"), "ab") == ["a", "b"]


COUNT = [0, 5, -1, 2.0, True, "2", None, [1], np.float64(2), 10**5000]
NUMBER = [-1, 0, 1.5, math.nan, math.inf, True, "1", None, [1.0], 1j]


@pytest.mark.parametrize(
    ("check", "given", "rule"),
    [
        (lambda value: checks.check_count("a", value, least=1, most=4), COUNT, "must be a whole number from 1 to 4"),
        (lambda value: checks.check_count("a", value, least=9), COUNT[:-1], "must be a whole number of at least 9"),
        (lambda x: checks.check_number("a", x, above=0, most=1), NUMBER, "must be a number above 0 and at most 1"),
        (lambda value: checks.check_number("a", value, least=2), NUMBER, "must be a finite number of at least 2"),
        (lambda x: checks.check_number("a", x, above=2, most=math.inf), [2, math.nan], "must be a number above 2"),
        (lambda value: checks.check_one_of("a", value, ("x", 3)), ["y", None, [3], {}], "must be one of x, 3"),
        (lambda value: checks.check_flag("a", value), ["true", 1, None], "must be true or false"),
        (lambda value: checks.check_text("a", value), [b"a", 1, None], "must be a text"),
        (lambda value: checks.check_all_of("a", value, "xy"), ["x", [], ()], "must be a list out of x, y"),
    ],
)  # fmt: skip
def test_what_may_not_be_is_named_with_the_rule(check, given, rule):
    for value in given:
        with pytest.raises(ArgumentError) as info:
            check(value)
        error = info.value
        assert (error.argument, error.value, error.rule) == ("a", value, rule)
        assert str(error).startswith(f"a {rule}; got ")
        assert len(str(error)) < 200
        assert error.named("--all") == f"--all{str(error)[1:]}"


def test_one_of_several_is_named():
    with pytest.raises(ValueError, match=r"^steps must be out of a, b; got 'c'$"):
        checks.check_all_of("steps", ["a", "c"], ["a", "b"])


def test_parts_cross_from_rank_to_kernel():
    error = pickle.loads(pickle.dumps(ArgumentError("tp", 3, "must divide 32")))
    assert (error.argument, error.value, str(error)) == ("tp", 3, "tp must divide 32; got 3")


def test_nothing_heavy_is_imported():
    heavy = "{'numpy', 'torch', 'pandas'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, tplab.checks; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan, 10**400, -(10**400)])
@pytest.mark.parametrize("bounds", [{}, {"most": 5}, {"least": 0.0}])
def test_a_number_is_finite(value, bounds):
    with pytest.raises(ArgumentError, match="n must be a"):
        checks.check_number("n", value, **bounds)


def test_infinity_is_a_number_where_it_is_the_most():
    assert checks.check_number("n", math.inf, above=0, most=math.inf) == math.inf
