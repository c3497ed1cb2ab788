"""What all checkers stand on: time limits, counts, what is said of answers that raise, and what a graded answer may not
use."""

import functools
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

import tplab.layers
from tplab.cluster import Cluster
from tplab.lab.exercises import EXERCISES, Verdict, check_int8_all_reduce, check_mlp, check_reduction, check_schedule
from tplab.lab.exercises.answers import as_count, as_number, as_numbers
from tplab.lab.exercises.own_work import find_library_use
from tplab.layers import TensorParallelLinear
from tplab.models import ModelSpec
from tplab.topology import place

pytestmark = pytest.mark.timeout(120)


def product(rank, x):
    dist.all_reduce(x, op=dist.ReduceOp.PRODUCT, group=rank.group)
    return x


def mlp(rank, x, gate, up, down):
    each = gate.shape[0] // rank.world_size
    mine = slice(rank.index * each, (rank.index + 1) * each)
    y = F.linear(F.silu(F.linear(x, gate[mine])) * F.linear(x, up[mine]), down[:, mine])
    dist.all_reduce(y, group=rank.group)
    return y


def int8(rank, x):
    from tplab.collectives import int8_all_reduce

    int8_all_reduce(x, rank.group)
    return x


def hangs(rank, *tensors):
    if rank.index == 0:
        dist.all_reduce(tensors[0], group=rank.group)
    return tensors[0]


def test_nothing_that_ranks_load_is_a_panel() -> None:
    """Half a second of plotly and widgets on every rank is what made right answers fail on a busy machine."""
    modules = [f"tplab.lab.exercises.{path.stem}" for path in Path(check_home()).glob("*.py") if path.stem[0] != "_"]
    assert len(modules) > 10
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    unwanted = [name for name in loaded if name in ("plotly", "ipywidgets", "IPython") or "lab.panels" in name]
    assert unwanted == []


def check_home() -> str:
    from tplab.lab import exercises

    return next(iter(exercises.__path__))


SLOW = '''
import importlib.abc, sys, time

class Slow(importlib.abc.MetaPathFinder):
    """A machine on which these imports take seconds, as they do on a busy one."""

    def find_spec(self, name, path=None, target=None):
        if name in ("tplab.lab.exercises.on_ranks", "torch.utils.flop_counter"):
            time.sleep(2.5)
        return None

sys.meta_path.insert(0, Slow())
'''


def test_imports_are_outside_the_learners_time_and_a_hang_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    (tmp_path / "slow_answer.py").write_text(
        "import time\ntime.sleep(2.5)\nimport torch.distributed as dist\n\n\ndef own(rank, x):\n"
        "    dist.all_reduce(x, op=dist.ReduceOp.PRODUCT, group=rank.group)\n    return x\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.syspath_prepend(str(tmp_path))
    import slow_answer

    with Cluster(2, "gloo") as cluster:
        said = check_reduction(cluster, hangs, timeout=1)
        assert "rank 0 was at line 3 of hangs" in said.message
        # Fresh ranks now, which import everything anew: that alone takes longer than the limit.
        for check, right in ((check_mlp, mlp), (check_int8_all_reduce, int8), (check_reduction, slow_answer.own)):
            verdict = check(cluster, right, timeout=2.4)
            assert verdict.passed, verdict.message


def spoil_counter(rank):
    """An answer that leaves its mark on the rank, for those that come after it."""
    from tplab.collectives import counter

    counter.CommCounter.total = lambda self, kind=None: counter.CommTotal(num_calls=1, num_bytes=1008)
    counter.CommCounter.__enter__ = lambda self: self
    counter._Mode.__torch_dispatch__ = lambda self, func, types, args=(), kwargs=None: func(*args, **(kwargs or {}))


def spoil_torch(rank):
    F.silu = lambda x: x


def test_a_spoiled_counter_does_not_count(clusters) -> None:
    def twice(rank, *args):
        y = mlp(rank, *args)
        dist.all_reduce(torch.zeros(1, device=rank.device), group=rank.group)
        return y

    with Cluster(2, "gloo") as cluster:
        cluster.run(spoil_counter)
        assert check_mlp(cluster, mlp).passed
        assert "counted: all-reduce, all-reduce" in check_mlp(cluster, twice).message
        cluster.run(spoil_torch)
        assert not check_mlp(cluster, mlp).passed  # what an answer does to torch itself stays until ...
        assert EXERCISES["03-mlp"].grade(cluster, mlp).passed  # ... the ranks are fresh


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda rank, x: x[99], "line 1 of <lambda>: IndexError"),
        (lambda rank, x: torch.full_like(x, 6.0), "has asked nobody"),
        (lambda rank, x: product(rank, x.clone()) * 0 + 6.0, "With numbers you have not seen.*the product, "),
        (lambda rank, x: (product(rank, x), x), "on rank 0 reduce\\(\\) returned 2 elements"),
        (lambda rank, x: True, "it returned True"),
        (lambda rank, x: product(rank, x).sum(), "reduce\\(\\) returned 1 elements|x has 5 elements"),
    ],
)
def test_reduction_wrong(cluster2: Cluster, answer, says: str) -> None:
    import re

    verdict = check_reduction(cluster2, answer)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message


def product_of_gathered(rank, x):
    parts = [torch.empty_like(x) for _ in range(rank.world_size)]
    dist.all_gather(parts, x, group=rank.group)
    return torch.stack(parts).prod(0).tolist()


def product_from_one(rank, x):
    dist.reduce(x, dst=0, op=dist.ReduceOp.PRODUCT, group=rank.group)
    dist.broadcast(x, src=0, group=rank.group)
    return (x.cpu().numpy(),)


def product_in_a_helper(rank, x):
    return product(rank, x)


@pytest.mark.parametrize("answer", [product_of_gathered, product_from_one, product_in_a_helper])
def test_reduction_right_in_any_way(cluster2: Cluster, answer) -> None:
    verdict = check_reduction(cluster2, answer)
    assert verdict.passed, verdict.message


def test_bad_arguments_are_named_with_the_way_out(cluster2: Cluster) -> None:
    class FakePool:
        cluster = cluster2

    with pytest.raises(ValueError, match=r"cluster must be a tplab.Cluster: pass pool\.cluster"):
        check_mlp(FakePool(), mlp)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="function must be your function itself"):
        check_mlp(cluster2, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout must be"):
        check_mlp(cluster2, mlp, timeout=0)


def test_a_verdict_folds_the_traceback_away(cluster2: Cluster) -> None:
    def helper(x):
        return x.no_such_thing

    def answer(rank, x):
        y = x + 1
        return helper(y)

    verdict = check_reduction(cluster2, answer)
    assert verdict.message.count("\n") == 0
    assert verdict.message.startswith("line 2 of helper: AttributeError")
    assert re.search(
        r"\(rank [01], with 2 on rank 0 and 3 on rank 1\)\.$", verdict.message
    )  # who was the first to raise
    shown = verdict._repr_html_()
    assert shown.index("AttributeError") < shown.index("<details>") < shown.index("<pre>") < shown.index("Traceback")
    assert repr(verdict).startswith("not yet: ")
    assert "Traceback" in repr(verdict).partition("\n\n")[2]
    assert "<b>" not in Verdict(False, "<b>", "<b>")._repr_html_().replace("<br>", "")


def test_of_an_answer_in_the_kernel_the_line_is_told() -> None:
    def schedule(p, m):
        rows = []
        return rows[p]

    verdict = check_schedule(schedule)
    assert not verdict.passed
    assert "IndexError" in verdict.message


def uses_by_import(rank, x):
    from tplab.collectives.ring import ring_all_reduce

    ring_all_reduce(x, rank.group)
    return x


def uses_a_global(rank, x):
    return TensorParallelLinear(2, 2, 0, 1)(x)


def uses_a_module(rank, x):
    return tplab.layers.ParallelMLP  # type: ignore[attr-defined]


def uses_through_a_helper(rank, x):
    return uses_a_global(rank, x)


def uses_in_a_nested_function(rank, x):
    def inner():
        import tplab as lab

        return lab

    return inner()


def uses_by_name(rank, x):
    import importlib

    return importlib.import_module("tplab.layers")


def uses_exec(rank, x):
    exec("from tplab import layers")


def uses_a_default(rank, x, layer=TensorParallelLinear):
    return layer


def uses_torch_only(rank, x):
    """As tplab does it, but by hand."""
    return [F.relu(x) for _ in range(3)], np.zeros(1)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (uses_by_import, "line 2 imports tplab.collectives.ring"),
        (uses_a_global, "it uses tplab.layers"),
        (uses_a_module, "it uses tplab"),
        (uses_through_a_helper, "it uses tplab.layers"),
        (uses_in_a_nested_function, "imports tplab"),
        (uses_by_name, "it names 'tplab.layers'"),
        (uses_exec, "it names 'from tplab import layers'"),
        (uses_a_default, "it uses tplab.layers"),
        (functools.partial(uses_torch_only, layer=TensorParallelLinear), "it uses tplab.layers"),
        (tplab.layers.TensorParallelLinear, "it is tplab.layers"),
        (uses_torch_only, ""),
        (product, ""),
    ],
)
def test_use_of_the_library_is_found(function, says: str) -> None:
    found = find_library_use(function)
    assert says in found
    assert bool(found) == bool(says)


MODEL = ModelSpec.from_config("llama-3.1-70b")


def score(tp, pp, machine, workload):
    from tplab.topology import place as placed

    return place(machine, tp, 1).slowest_ring_link.bandwidth_GBps + placed(machine, tp, pp).x + MODEL.num_layers


def score_by_the_advisor(tp, pp, machine, workload):
    from tplab.topology import advise, place

    return place, advise


def test_what_an_exercise_allows_may_be_used() -> None:
    allowed = EXERCISES["07-score"].allowed
    assert find_library_use(score, allowed) == ""
    assert "tplab" in find_library_use(score)
    assert "imports tplab.topology" in find_library_use(score_by_the_advisor, allowed)


def test_grading_refuses_the_librarys_own_answer(cluster2: Cluster) -> None:
    verdict = EXERCISES["04-int8"].grade(cluster2, int8)
    assert not verdict.passed
    assert "line 2 imports tplab.collectives: write it yourself" in verdict.message


@pytest.mark.parametrize(
    ("value", "number", "count"),
    [
        (3, 3.0, 3),
        (4.0, 4.0, 4),
        (2.5, 2.5, None),
        (np.int64(7), 7.0, 7),
        (np.float32(0.5), 0.5, None),
        (np.array([5]), 5.0, 5),
        (torch.tensor(6), 6.0, 6),
        (torch.tensor([1, 2]), None, None),
        (True, None, None),
        (np.bool_(True), None, None),
        ("3", None, None),
        (None, None, None),
        (float("nan"), None, None),
        (float("inf"), None, None),
        (np.float64, None, None),
        ([3], None, None),
    ],
)
def test_numbers_in_any_form(value, number, count) -> None:
    assert as_number(value) == number
    assert as_count(value) == count


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        ([1, 2], [1, 2]),
        ((1, (2, 3)), [1, 2, 3]),
        (np.arange(4).reshape(2, 2), [0, 1, 2, 3]),
        (torch.ones(2), [1.0, 1.0]),
        ([np.ones(2), torch.zeros(1)], [1.0, 1.0, 0.0]),
        ((i for i in range(2)), [0, 1]),
        ([], []),
        ([None, "a"], [None, "a"]),
        ("12", None),
        (None, None),
        (3, None),
        ({1: 2}, None),
        (np.int64(3), None),
    ],
)
def test_lists_of_numbers_in_any_form(value, numbers) -> None:
    assert as_numbers(value) == numbers


def test_the_registry_costs_nothing_to_read() -> None:
    code = textwrap.dedent("""
        import sys
        from tplab.lab.exercises import EXERCISES
        assert "03-mlp" in EXERCISES
        print([name for name in ("torch", "plotly", "tplab.lab.exercises.layers") if name in sys.modules])
    """)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
