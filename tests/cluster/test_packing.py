"""torch's objects travel whatever their type, with their own bytes and no others; what cannot travel has a name."""

import importlib
import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch

from tplab.cluster import RankError, wire
from tplab.cluster.packing import pack, unpack

pytestmark = pytest.mark.timeout(60)

QUANTISED = {torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4}
DTYPES = sorted({v for v in vars(torch).values() if isinstance(v, torch.dtype)} - QUANTISED, key=str)


def trip(value):
    return unpack(pack(value, to_cpu=True))


def filled(dtype, shape):
    """A tensor in which every byte is another, of types that have no arithmetic, too."""
    x = torch.empty(shape, dtype=dtype)
    x.untyped_storage().copy_(torch.arange(x.nbytes, dtype=torch.uint8).untyped_storage())
    return x


def raw(x):
    return bytes(x.untyped_storage())


class TestKinds:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_type(self, dtype):
        x = filled(dtype, (6, 4))
        whole, column = trip({"a": [x]})["a"][0], trip(x[:, 1])
        assert (whole.dtype, whole.shape, whole.stride()) == (dtype, x.shape, x.stride())
        assert raw(whole) == raw(x)
        size = x.element_size()
        assert column.dtype is dtype
        assert raw(column) == b"".join(raw(x)[(4 * i + 1) * size : (4 * i + 2) * size] for i in range(6))

    @pytest.mark.parametrize(
        "make",
        [
            lambda x: x.to_sparse(),
            lambda x: x.to_sparse_csr(),
            lambda x: torch.nested.nested_tensor([x[0], x[0, :1]]),
            lambda x: torch.nested.nested_tensor([x[0], x[0, :1]], layout=torch.jagged),
            lambda x: torch.quantize_per_tensor(x, 0.5, 0, torch.quint8),
            lambda x: x.to(torch.complex64).conj(),
            lambda x: x[:0],
            lambda x: x[1, 2],
        ],
        ids=["sparse", "csr", "nested", "jagged", "quantised", "conjugate", "empty", "scalar"],
    )
    def test_layouts(self, make):
        x = make(torch.arange(12.0).reshape(3, 4))
        y = trip((x,))[0]
        assert (type(y), y.layout, y.dtype) == (type(x), x.layout, x.dtype)
        same = y.to_padded_tensor(0.0) == x.to_padded_tensor(0.0) if x.is_nested else y.to_dense() == x.to_dense()
        assert same.all()

    def test_meta(self):
        y = trip(torch.empty(1 << 40, dtype=torch.float8_e5m2, device="meta"))
        assert (y.device.type, y.numel(), y.dtype) == ("meta", 1 << 40, torch.float8_e5m2)

    def test_parameters_and_what_needs_a_gradient(self):
        layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        layer[1].weight = layer[0].weight
        layer[0].bias.requires_grad_(False)
        copy = trip(layer)
        assert copy[0].weight is copy[1].weight
        assert type(copy[0].bias) is torch.nn.Parameter
        assert [p.requires_grad for p in copy.parameters()] == [p.requires_grad for p in layer.parameters()]
        y = trip(2 * torch.ones(2, requires_grad=True))
        assert (y.requires_grad, y.is_leaf) == (True, True)

    def test_class_and_attributes(self):
        class Tagged(torch.Tensor):
            pass

        x = torch.ones(3).as_subclass(Tagged)
        x.tag = "a"
        plain = torch.ones(2)
        plain.tag = "b"
        y, z = trip([x, plain])
        assert (type(y).__name__, y.tag, type(z), z.tag) == ("Tagged", "a", torch.Tensor, "b")

    def test_storages_and_words(self):
        x = torch.tensor([1.0, 2.0])
        untyped, typed, view = trip([x.untyped_storage(), x.storage(), x])
        assert bytes(untyped) == raw(x)
        assert list(typed) == [1.0, 2.0]
        untyped.fill_(0)
        assert (list(typed), view.tolist()) == ([0.0, 0.0], [0.0, 0.0]), "they are of one memory"
        words = [torch.float8_e4m3fn, torch.device("cuda", 3), torch.Size([1, 2]), torch.strided, torch.Generator()]
        assert trip(words[:-1]) == words[:-1]
        assert trip(torch.Generator().manual_seed(7)).initial_seed() == 7


class TestBytes:
    X = torch.arange(10_000 * 64, dtype=torch.float32).reshape(10_000, 64)

    @pytest.mark.parametrize(
        "cut",
        [
            lambda x: x[5],
            lambda x: x[:, 5],
            lambda x: x[:, :32],
            lambda x: x[::2],
            lambda x: x[7:9].T,
            lambda x: x[0].expand(1 << 30, 64),
            lambda x: x.view(torch.int16)[3],
        ],
        ids=["row", "column", "half", "every other", "transposed", "expanded", "retyped"],
    )
    def test_a_view_carries_its_own_elements(self, cut):
        x = cut(self.X)
        data = pack(x, to_cpu=True)
        assert len(data) < 600 + 1.06 * x[: min(len(x), 10_000)].nbytes
        y = unpack(data)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        assert y.untyped_storage().nbytes() <= 1.06 * x.nbytes
        assert torch.equal(y[:20_000], x[:20_000])

    def test_of_a_quantised_one_too(self):
        assert len(pack(torch.quantize_per_tensor(self.X, 0.5, 0, torch.qint8)[:3], to_cpu=True)) < 1000

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_what_overlaps_is_sent_once_and_overlaps(self, order):
        views = [self.X[:, 3], self.X]
        data = pack([views[i] for i in order], to_cpu=True)
        assert len(data) < 1000 + self.X.nbytes
        made = dict(zip(order, unpack(data), strict=True))
        made[1][17, 3] = -1.0
        assert made[0][17] == -1.0
        assert self.X[17, 3] != -1.0

    def test_what_lies_apart_stays_apart(self):
        data = pack([self.X[0], self.X[9_999]], to_cpu=True)
        assert len(data) < 1500
        assert torch.equal(unpack(data)[1], self.X[9_999])

    def test_views_of_other_types_at_odd_places(self):
        x = torch.arange(32, dtype=torch.uint8)
        views = [x[1:6], x[8:24].view(torch.float64), x[4:20].view(torch.int32), x[3:7]]
        for made, view in zip(trip(views), views, strict=True):
            assert torch.equal(made, view)

    def test_memory_of_numpy(self):
        array = np.arange(12.0).reshape(3, 4)
        copy, view = trip([array, torch.from_numpy(array)[1]])
        assert (copy == array).all()
        assert view.tolist() == array[1].tolist()

    def test_freed_memory_is_not_read(self):
        x = torch.ones(1000)
        x.untyped_storage().resize_(0)
        with pytest.raises(TypeError, match=r"args\[0\].*shape \(1000,\).*freed"):
            wire.pack_call(print, (x,))


@dataclass
class Box:
    inside: object


def test_both_ways_on_ranks(cluster2):
    """In arguments, closures, values and reports, inside of other things."""
    closed = torch.ones(2).to(torch.float8_e4m3fn)

    def use(rank, box, storage):
        rank.report(of={"u": torch.tensor([rank.index, 65_535]).to(torch.uint16)}, storage=storage)
        return Box([closed.float() + box.inside["x"].float(), torch.tensor([2.0]).to(torch.float8_e5m2)])

    argument = Box({"x": torch.tensor([2.0, 3.0]).to(torch.float8_e5m2)})
    run = cluster2.submit(use, argument, torch.tensor([1.5]).untyped_storage())
    for value in run.result():
        total, small = value.inside
        assert (total.tolist(), small.dtype, small.float().item()) == ([3.0, 4.0], torch.float8_e5m2, 2.0)
    assert sorted(r.fields["of"]["u"].tolist() for r in run.reports) == [[0, 65_535], [1, 65_535]]
    assert {bytes(r.fields["storage"]) for r in run.reports} == {raw(torch.tensor([1.5]))}


class Breaks:
    """Cannot be rebuilt anywhere."""

    def __reduce__(self):
        return eval, ("no_such_name",)


class TestCachedFunctions:
    def test_of_a_notebook_travel_with_what_they_call(self, cluster2):
        def fib(n):
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        fib = lru_cache(maxsize=7)(fib)
        assert cluster2.run(lambda rank: (fib(80), fib.cache_parameters()["maxsize"])) == [(23416728348467685, 7)] * 2

    def test_of_a_module_that_was_loaded_again_since(self, tmp_path, monkeypatch):
        (tmp_path / "cached_then.py").write_text(
            "from functools import cache\n\n@cache\ndef tens(x):\n    return 10 * x\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        module = importlib.import_module("cached_then")
        older = module.tens
        assert trip(older) is older
        assert trip(importlib.reload(module).tens) is module.tens
        assert trip(older)(2) == 20


class TestReports:
    def test_one_that_cannot_travel_is_refused_by_name(self, cluster2):
        def report(rank):
            rank.report(fine=1, guard=threading.Lock())

        with pytest.raises(RankError, match=r"in report\(\)[\s\S]*field 'guard' cannot be sent.*lock"):
            cluster2.run(report)

    def test_one_that_cannot_be_rebuilt_is_named_and_kept(self, cluster2, capsys):
        def report(rank):
            for i in range(3):
                rank.report(i=i, odd=Breaks())

        called = []
        run = cluster2.submit(report, on_report=called.append)
        run.result()
        assert len(run.reports) == len(called) == 6
        assert sorted(r.fields["i"] for r in run.reports) == [0, 0, 1, 1, 2, 2]
        for r in run.reports:
            assert isinstance(r.fields["odd"], RankError)
            assert f"field 'odd' of a report of rank {r.rank} in report()" in str(r.fields["odd"])
        assert capsys.readouterr().err.count("field 'odd'") == 1


class TestGroups:
    def test_members_are_shown_with_their_lines_and_notes(self, cluster2):
        def fail(rank):
            first = ValueError("the first")
            first.add_note("a note on it")
            try:
                {}["missing"]  # this very line
            except KeyError as error:
                second = error
            raise ExceptionGroup("several", [first, ExceptionGroup("more", [second])])

        with pytest.raises(RankError) as caught:
            cluster2.run(fail)
        text = str(caught.value)
        for words in ("several (2 sub-exceptions)", "ValueError: the first", "a note on it", "KeyError: 'missing'"):
            assert words in text
        assert "# this very line" in text
        assert isinstance(caught.value.__cause__, ExceptionGroup)

    def test_of_very_many_and_very_deep_ones_the_first(self):
        deep = ValueError("the bottom")
        for _ in range(50):
            deep = ExceptionGroup("a level", [deep])
        text = wire.format_fault(wire.describe_fault(ExceptionGroup("wide", [deep, *map(KeyError, range(40))])), 0)
        assert "26 more are not shown" in text
        assert text.count("a level") == 10
        assert "the bottom" not in text
