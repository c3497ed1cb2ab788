"""Links calibrated from what nccl-tests printed: what was measured is used, and what was not is said."""

from dataclasses import replace

import numpy as np
import pytest

from tests.collectives.nccl_output import printed, us_of
from tplab import Machine, ModelSpec, Workload, advise, predict
from tplab.collectives import read_nccl
from tplab.topology import Calibration, EnginePolicy, calibration_of_nccl, machine_of
from tplab.topology.calibration.from_nccl import beside_formula, formula_of_test, machine_of_test

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NCCL = Workload(input_length=512, output_length=64, concurrency=8, engine=EnginePolicy(name="vllm", all_reduce="nccl"))
LLAMA = ModelSpec.from_config("llama-3.1-70b")


@pytest.fixture
def tests_of(tmp_path):
    def reading(*texts):
        made = []
        for text in texts:
            (tmp_path / "out.txt").write_text(text)
            made += read_nccl(tmp_path / "out.txt")
        return made

    return reading


def slow(nbytes):
    return us_of(nbytes, alpha=500.0, GBps=2.0)


def test_what_was_measured_is_used(tests_of):
    made = calibration_of_nccl(tests_of(printed(us=slow), printed("sendrecv", us=slow)))
    assert (made.num_ranks, made.device, made.backend) == (8, "NVIDIA H100 80GB HBM3", "nccl")
    assert made.all_reduce_us(MIB, 8, graph=True) == pytest.approx(slow(MIB), rel=1e-3)
    assert made.send_us(MIB) == pytest.approx(slow(MIB), rel=1e-3)
    by_sheet = predict(LLAMA, Machine.preset("h100"), NCCL, tp=8, pp=1)
    measured = predict(LLAMA, Machine.preset("h100"), NCCL, tp=8, pp=1, calibration=made)
    terms = {term.name: term for term in measured.terms}
    assert terms["all_reduce"].ms > 5 * {term.name: term for term in by_sheet.terms}["all_reduce"].ms
    assert terms["all_reduce"].provenance == made.badge
    assert "measured" not in terms["weights"].provenance
    assert advise(LLAMA, Machine.preset("h100"), NCCL, calibration=made).best.layout.tp < 8


def test_what_was_not_is_said(tests_of):
    made = calibration_of_nccl(tests_of(printed()))
    said = " ".join(made.notes)
    assert "all-reduces of 8, measured from 8 bytes to 256 MiB" in said
    assert "not measured, so by spec sheet and formula: messages between stages (sendrecv_perf), GEMMs" in said
    prediction = predict(LLAMA, Machine.preset("h100"), NCCL, tp=4, pp=2, calibration=made)
    assert any("not measured" in note for note in prediction.notes)
    terms = {term.name: term for term in prediction.terms}
    assert "formula" in terms["hops"].provenance
    assert "interpolated from other group sizes" in terms["all_reduce"].provenance


def test_the_file_comes_back(tests_of, tmp_path):
    made = calibration_of_nccl(tests_of(printed(n=16, hosts=2), printed("sendrecv", 16, hosts=2)))
    made.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == made
    assert made.all_reduce[0].nodes == 2
    assert made.sends[0].nodes == 2


def test_the_machine_is_the_usual_one_of_its_gpus(tests_of):
    machine = machine_of(calibration_of_nccl(tests_of(printed(n=4))))
    assert (machine.gpu.name, machine.num_gpus) == ("h100", 4)
    assert machine.link(0, 1).kind == "nvswitch"
    pair = machine_of(calibration_of_nccl(tests_of(printed(n=2), printed("sendrecv", 2))))
    assert pair.link(0, 1) == Machine.preset("h100", gpus=2).link(0, 1)
    assert machine_of(calibration_of_nccl(tests_of(printed(gpu="NVIDIA H100 NVL")))).gpu.name == "h100-nvl"
    with pytest.raises(ValueError, match="needs the machine beside it"):
        machine_of(calibration_of_nccl(tests_of(printed(gpu="NVIDIA GH200 480GB"))))  # no such node
    over = machine_of(calibration_of_nccl(tests_of(printed(n=16, hosts=2))))
    assert (over.nodes, over.gpus_per_node) == (2, 8)
    unnamed = calibration_of_nccl(tests_of(printed(ranks=False)))
    with pytest.raises(ValueError, match="needs the machine beside it"):
        machine_of(unnamed)
    assert machine_of(calibration_of_nccl(tests_of(printed(ranks=False)), machine="h200")).gpu.name == "h200"


def test_over_hosts_it_is_the_network_that_was_measured(tests_of):
    made = calibration_of_nccl(
        tests_of(printed(n=16, hosts=2, us=slow), printed("sendrecv", 16, hosts=2, us=slow)),
    )
    cluster = Machine.preset("h100", nodes=2)

    def terms(tp, pp, calibration):
        found = predict(LLAMA, cluster, NCCL, tp=tp, pp=pp, calibration=calibration).terms
        return {term.name: term.ms for term in found}

    assert terms(16, 1, made)["all_reduce"] > 5 * terms(16, 1, None)["all_reduce"]
    assert terms(8, 2, made)["hops"] > 1.5 * terms(8, 2, None)["hops"]
    assert terms(8, 2, made)["all_reduce"] == pytest.approx(terms(8, 2, None)["all_reduce"])  # inside a node
    assert terms(4, 2, made)["hops"] == pytest.approx(terms(4, 2, None)["hops"])
    inside = calibration_of_nccl(tests_of(printed(us=slow), printed(n=16, hosts=2)))
    assert terms(8, 2, inside)["all_reduce"] > 5 * terms(8, 2, None)["all_reduce"]
    assert terms(16, 1, inside)["all_reduce"] < terms(16, 1, made)["all_reduce"] / 5


def test_large_sizes_only_say_nothing_of_small_ones(tests_of):
    """The default of nccl-tests is 32 MiB: a decode step's 16 KiB do not take as long."""
    made = calibration_of_nccl(tests_of(printed(sizes=(32 * MIB,))))
    small, large = made.all_reduce_us([16 * KIB, 32 * MIB], 8, graph=True)
    assert large == pytest.approx(us_of(32 * MIB), rel=1e-3)
    assert small < 60
    assert "below, the formula times" in made.notes[0]
    assert list(np.diff(made.all_reduce[0].p50_us) >= 0) == [True] * (len(made.all_reduce[0].p50_us) - 1)


def test_small_sizes_only_say_nothing_of_large_ones(tests_of):
    made = calibration_of_nccl(tests_of(printed(sizes=(8, KIB, 8 * KIB))))
    assert float(made.all_reduce_us(64 * MIB, 8, graph=True)) < 1e3  # 20 us at 8 KiB are 0.4 GB/s: not 160 ms
    assert "above, the formula" in made.notes[0]


def test_without_a_machine_such_sizes_are_refused(tests_of):
    few = tests_of(printed(ranks=False, sizes=(64 * MIB, GIB)))
    with pytest.raises(ValueError, match=r"machine must be named: the all-reduce was measured from 64 MiB to 1 GiB"):
        calibration_of_nccl(few)
    assert calibration_of_nccl(few, machine="h100").device == "h100"
    assert calibration_of_nccl(tests_of(printed(ranks=False))).device.startswith("GPUs that")


def test_graphs_are_told_apart(tests_of):
    assert any("-G 20" in note for note in calibration_of_nccl(tests_of(printed())).notes)
    made = calibration_of_nccl(tests_of(printed(us=slow), printed(graph=5)))
    assert not any("-G 20" in note for note in made.notes)
    assert [sweep.launch for sweep in made.all_reduce] == ["eager", "graph"]
    assert made.all_reduce_us(MIB, 8, graph=True) == pytest.approx(us_of(MIB), rel=1e-3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((printed("alltoall"), printed("all_gather")), r"an all_reduce_perf or a sendrecv_perf.*got 'all-to-all"),
        ((printed(n=4), printed(n=4, gpu="NVIDIA A100-SXM4-80GB")), "must be of GPUs of one kind"),
        ((printed(n=2).replace("80GB HBM3", "PCIe", 1),), "must be of GPUs of one kind"),
    ],
)
def test_what_cannot_be_one_machine_is_refused(tests_of, texts, message):
    with pytest.raises(ValueError, match=message):
        calibration_of_nccl(tests_of(*texts))


def test_other_gpus_calibration_is_refused(tests_of):
    made = calibration_of_nccl(tests_of(printed()))
    with pytest.raises(ValueError, match="must be what the calibration is of"):
        advise(LLAMA, Machine.preset("a100"), NCCL, calibration=made)


class TestFormula:
    def test_beside_every_size(self, tests_of):
        (test,) = tests_of(printed(sizes=(KIB, MIB, 64 * MIB)))
        machine = machine_of_test(test)
        formula = formula_of_test(test, machine)
        (test,) = tests_of(printed(sizes=(KIB, MIB, 64 * MIB), us=lambda size: float(formula(size)[0])))
        frame = beside_formula(test, machine)
        assert list(frame["bytes"]) == [KIB, MIB, 64 * MIB]
        assert frame["off_pct"].abs().max() < 1

    def test_of_a_send(self, tests_of):
        (test,) = tests_of(printed("sendrecv", 2, hosts=2))
        machine = machine_of_test(test)
        assert (machine.nodes, machine.gpus_per_node) == (2, 1)
        assert float(formula_of_test(test, machine)(400 * MIB)[0]) == pytest.approx(400 * MIB / 50e3, rel=0.5)

    def test_none_for_others_and_for_machines_that_are_not_known(self, tests_of):
        (test,) = tests_of(printed("all_gather"))
        assert formula_of_test(test, Machine.preset("h100")) is None
        assert beside_formula(test, Machine.preset("h100")).empty
        (test,) = tests_of(printed(gpu="NVIDIA Graphics Device"))
        assert machine_of_test(test) is None
        assert machine_of_test(test, "h100").num_gpus == 8
        with pytest.raises(ValueError, match=r"no .* preset"):
            machine_of_test(test, "h1000")

    def test_gpus_that_nvlink_joins_over_hosts_are_one_node(self, tests_of):
        (test,) = tests_of(printed(n=16, hosts=4, gpu="NVIDIA GB200"))
        assert machine_of_test(test).nodes == 1
        assert machine_of_test(replace(test, num_hosts=None)).num_gpus == 16
