"""A calibration survives its file, and a file that is none is refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.topology.advisor.calibration import AllReduceTimes, Calibration, MatmulTimes, SendTimes, interpolate
from tplab.topology.verification import machine_of

WHOLE = Calibration(
    machine="2 x test",
    device="a CPU",
    backend="gloo",
    num_ranks=4,
    created="2026-11-24T18:00:00+00:00",
    versions={"torch": "2.13", "python": "3.11"},
    all_reduce=(
        AllReduceTimes(num_ranks=2, nbytes=(1e3, 1e6), p50_us=(10.0, 100.0), link="host"),
        AllReduceTimes(num_ranks=2, nbytes=(1e3, 1e6), p50_us=(30.0, 300.0), gpus=(0, 3)),
        AllReduceTimes(num_ranks=4, launch="graph", nbytes=(1e3,), p50_us=(7.0,)),
        AllReduceTimes(num_ranks=4, nbytes=(1e3,), p50_us=(20.0,)),
    ),
    sends=(
        SendTimes(source=0, target=1, nbytes=(1e3, 1e6), p50_us=(5.0, 50.0)),
        SendTimes(source=0, target=2, nbytes=(1e3, 1e6), p50_us=(9.0, 40.0)),
    ),
    matmuls=(
        MatmulTimes(
            precision="fp32", tokens=(1, 1, 8, 8), params=(1e4, 1e6, 1e4, 1e6), p50_us=(6.0, 105.0, 9.0, 405.0)
        ),
        MatmulTimes(precision="fp32", num_ranks=4, tokens=(1, 1), params=(1e4, 1e6), p50_us=(12.0, 210.0)),
    ),
    copy_GBps=12.5,
    launch_us=4.0,
    notes=("ranks share cores",),
)
BARE = Calibration(machine="m", device="d", backend="gloo", num_ranks=1, created="2026-11-24", versions={})


@pytest.mark.parametrize("made", [WHOLE, BARE])
def test_there_and_back(made, tmp_path):
    assert Calibration.from_json(made.to_json()) == made
    path = made.save(tmp_path / "machine.json")
    assert Calibration.load(path) == made
    assert [file.name for file in tmp_path.iterdir()] == ["machine.json"]  # no half-written file left


def test_emulated_links_of_a_file_from_before_are_known_by_its_notes():
    for notes, want in (
        (("emulated link 3,000 us, 0.1 GB/s",), True),
        (("4 ranks share 2 cores", "emulated link 10 us, inf GB/s, 2 pairs differ"), True),
        (("links that are not emulated",), False),
        ((), False),
    ):
        data = json.loads(replace(WHOLE, notes=notes, emulated_links=not want).to_json())
        assert Calibration.from_json(json.dumps(data)).emulated_links is not want  # the file says so itself
        del data["emulated_links"]
        old = Calibration.from_json(json.dumps(data))
        assert old.emulated_links is want
        assert machine_of(old).link(0, 1).kind == ("emulated" if want else "host")


def test_what_is_not_measured_is_none():
    assert BARE.all_reduce_us(1e3, 2, graph=True) is None
    assert BARE.send_us(1e3) is None
    assert BARE.matmul_curve("fp32") is None
    assert BARE.all_reduce_us([1e3, 1e6], 1, graph=True).tolist() == [0.0, 0.0]
    assert WHOLE.matmul_curve("bf16") is None


def test_the_group_that_was_measured_goes_first_then_the_launch():
    assert WHOLE.all_reduce_us(1e3, 2, graph=False) == pytest.approx(10)
    assert WHOLE.all_reduce_us(1e3, 2, graph=True) == pytest.approx(10)
    assert WHOLE.all_reduce_us(1e3, 2, graph=False, gpus=(3, 0)) == pytest.approx(30)
    assert WHOLE.all_reduce_us(1e3, 4, graph=True) == pytest.approx(7)
    assert WHOLE.all_reduce_us(1e3, 4, graph=False) == pytest.approx(20)
    assert WHOLE.all_reduce_us(1e3, 8, graph=False) is None


def test_sends_by_pair_and_the_slowest_of_all():
    assert WHOLE.send_us(1e3, [(2, 0)]) == pytest.approx(9)
    assert WHOLE.send_us(1e6, [(0, 1)]) == pytest.approx(50)
    assert WHOLE.send_us(1e3, [(0, 1), (0, 2), (1, 2)]) == pytest.approx(9)
    assert WHOLE.send_us(1e3, [(1, 2)]) == pytest.approx(9)  # not measured: the slowest of all
    assert WHOLE.send_us(np.array([1e3, 1e6])).tolist() == pytest.approx([9, 50])


def test_matmuls_split_into_start_and_rate():
    curve = WHOLE.matmul_curve("fp32")
    assert curve.fixed(1) == pytest.approx(5)
    assert curve.per_param(1) == pytest.approx(1e-4)
    assert curve.per_param(8) == pytest.approx(4e-4, rel=0.01)
    assert 1e-4 < curve.per_param(3) < 4e-4
    assert curve.per_param(16) == pytest.approx(2 * curve.per_param(8))  # beyond what was measured: by tokens
    assert WHOLE.matmul_curve("fp32", 4).per_param(1) == pytest.approx(2e-4)
    assert WHOLE.matmul_curve("fp32", 3).per_param(1) == pytest.approx(2e-4)  # the nearest number of ranks


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(0.1, 1e6)), min_size=1, max_size=8, unique_by=lambda p: p[0])
)
def test_interpolation_is_exact_at_its_points_unless_a_larger_size_was_faster(points):
    points = sorted(points)
    sizes, times = [size for size, _ in points], [us for _, us in points]
    smooth = [min(times[i:]) for i in range(len(times))]
    assert interpolate(sizes, sizes, times) == pytest.approx(smooth)
    assert interpolate(sizes[0] / 2, sizes, times) == pytest.approx(smooth[0])
    assert interpolate(sizes[-1] * 2, sizes, times) == pytest.approx(2 * times[-1])


def test_more_tokens_never_make_a_product_faster():
    wavering = MatmulTimes(
        precision="fp32", tokens=(1, 1, 8, 8, 64, 64), params=(1e4, 1e6) * 3, p50_us=(6, 105, 9, 85, 7, 405)
    )  # fmt: skip
    curve = replace(BARE, matmuls=(wavering,)).matmul_curve("fp32")
    times = curve.time_us(np.geomspace(1, 200, 60), 1e6)
    assert (np.diff(times) >= 0).all()
    assert curve.time_us(1, 1e6) == pytest.approx(85)
    assert curve.time_us(64, 1e6) == pytest.approx(405)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "tplab-calibration/0"}, "has format 'tplab-calibration/1', got 'tplab-calibration/0'"),
        ({"colour": "red"}, "calibration has unknown keys colour: known are all_reduce"),
        ({"machine": None}, None),
        ({"copy_GBps": -1.0}, "copy_GBps must be above 0 or None, got -1.0"),
        ({"launch_us": float("inf")}, "launch_us must be finite and not negative"),
        (
            {"all_reduce": [{"num_ranks": 1, "nbytes": [1.0], "p50_us": [1.0]}]},
            r"all_reduce\[0\]: num_ranks .* from 2 to",
        ),
        (
            {"all_reduce": [{"num_ranks": 2, "nbytes": [2.0, 1.0], "p50_us": [1.0, 1.0]}]},
            "must be above 0 and increase",
        ),
        ({"all_reduce": [{"num_ranks": 2, "nbytes": [1.0], "p50_us": [0.0]}]}, "finite and above 0"),
        ({"all_reduce": [{"num_ranks": 2, "launch": "magic", "nbytes": [1.0], "p50_us": [1.0]}]}, "eager, graph"),
        ({"sends": [{"source": 0, "target": 1, "nbytes": [1.0]}]}, r"sends\[0\] lacks p50_us"),
        ({"sends": [3]}, r"sends\[0\] must be an object, got 3"),
        ({"all_reduce": None}, "calibration: all_reduce must be a list, each an object, got null"),
        ({"all_reduce": 5}, "calibration: all_reduce must be a list, each an object, got 5"),
        ({"sends": {"source": 0}}, r'calibration: sends must be a list, each an object, got {"source": 0}'),
        ({"created": 5}, "calibration: created must be a text, got 5"),
        ({"device": None}, "calibration: device must be a text, got null"),
        ({"num_ranks": "4"}, 'calibration: num_ranks must be a whole number, got "4"'),
        ({"num_ranks": 4.5}, "calibration: num_ranks must be a whole number, got 4.5"),
        ({"num_ranks": True}, "calibration: num_ranks must be a whole number, got true"),
        ({"copy_GBps": "fast"}, 'calibration: copy_GBps must be a number or null, got "fast"'),
        ({"versions": ["torch"]}, r'calibration: versions must be an object, each value a text, got \["torch"\]'),
        ({"versions": {"torch": 2.13}}, "calibration: versions must be an object, each value a text"),
        ({"notes": "ranks share cores"}, 'calibration: notes must be a list, each a text, got "ranks share cores"'),
        (
            {"sends": [{"source": 0, "target": 1, "nbytes": 8, "p50_us": [1.0]}]},
            r"sends\[0\]: nbytes must be a list, each a number, got 8",
        ),
        (
            {"sends": [{"source": 0, "target": 1, "nbytes": ["8"], "p50_us": [1.0]}]},
            r'sends\[0\]: nbytes must be a list, each a number, got \["8"\]',
        ),
        ({"matmuls": [{"precision": "fp32", "tokens": [1], "params": [2.0], "p50_us": [3.0]}]}, "at least two shapes"),
        ({"matmuls": [{"precision": "fp32", "tokens": [1], "params": [], "p50_us": []}]}, "as many tokens, params"),
    ],
)
def test_files_that_are_none(change, message, tmp_path):
    data = json.loads(WHOLE.to_json()) | change
    if message is None:
        del data["machine"]
        message = "calibration lacks machine"
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as caught:
        Calibration.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path):
    path = tmp_path / "odd.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"odd\.json is not text in UTF-8"):
        Calibration.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_text_that_is_no_calibration(text):
    with pytest.raises(ValueError, match="a calibration"):
        Calibration.from_json(text)
