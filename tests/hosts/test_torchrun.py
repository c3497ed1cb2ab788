"""The measuring commands under ``torchrun`` over two hosts: what they write, and what they say when a rank fails."""

import csv

import pytest

from tests.hosts.launch import torchrun
from tplab.models.spec import ModelSpec
from tplab.pipeline import build_schedule
from tplab.pipeline.trace import Trace
from tplab.topology.advisor.advice import advise
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.placement import place
from tplab.topology.verification.static_batch import LAB, machine_of

MBIT = 400


def test_a_sweep_over_hosts_of_different_size(hosts, tmp_path):
    out = tmp_path / "sweep.csv"
    options = ["--backend", "gloo", "--from-size", "4KiB", "--to-size", "16KiB", "--iterations", "2", "--out", str(out)]
    run = torchrun(hosts, ["tplab.cli", "sweep", *options], ranks=(2, 1))
    assert run.codes == {"alpha": 0, "beta": 0}, run.output
    assert "3 ranks on 2 hosts: alpha 2, beta 1" in run.output["alpha"]
    assert "ranks on" not in run.output["beta"]
    rows = list(csv.DictReader(out.open()))
    assert [int(row["bytes"]) for row in rows] == [4096, 8192, 16384]
    assert {row["correct"] for row in rows} == {"True"}
    where = {(row["num_ranks"], row["num_hosts"], row["link"]) for row in rows}
    assert where == {("3", "2", "TCP between 2 hosts")}
    assert not [*tmp_path.glob(".*")]


CALIBRATES = """
import sys
from tplab.cluster.launched import launched
from tplab.topology import calibrate

with launched("gloo") as cluster:
    if cluster is not None:
        sizes = [1 << power for power in (12, 14, 16, 18, 20, 22)]
        calibrate(cluster, rounds=1, sizes=sizes, tokens=(1, 8, 64), widths=(64, 128)).save(sys.argv[1])
"""


@pytest.fixture(scope="module")
def calibration(_hosts, tmp_path_factory):
    """Two ranks on each host, with a cable of ``MBIT`` between the hosts."""
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "calibrates_a_little.py").write_text(CALIBRATES)
    for host in _hosts.members:
        _hosts.set_rate(host, MBIT)
    out = folder / "calibration.json"
    run = torchrun(_hosts, ["calibrates_a_little", str(out)], ranks=(2, 2), env={"PYTHONPATH": str(folder)})
    _hosts.reset()
    assert run.codes == {"alpha": 0, "beta": 0}, run.output
    return Calibration.load(out)


def test_two_classes_of_pairs(calibration):
    assert {(s.source, s.target): s.nodes for s in calibration.sends} == {
        **{(0, 1): 1, (2, 3): 1},
        **{(0, 2): 2, (0, 3): 2, (1, 2): 2, (1, 3): 2},
    }
    assert {s.gpus: s.nodes for s in calibration.all_reduce} == {(0, 1): 1, (2, 3): 1, (0, 1, 2, 3): 2}
    assert "4 ranks on 2 hosts: alpha 2, beta 2" in calibration.notes


def test_the_link_is_what_tc_was_told(calibration):
    machine = machine_of(calibration)
    assert (machine.nodes, machine.gpus_per_node) == (2, 2)
    assert machine.network.bandwidth_GBps * 8e3 == pytest.approx(MBIT, rel=0.2)
    assert machine.link(0, 1).bandwidth_GBps > 2 * machine.network.bandwidth_GBps


def test_advice_puts_tensor_parallelism_inside_and_the_pipeline_across(calibration):
    machine = machine_of(calibration)
    workload = Workload(input_length=128, output_length=64, concurrency=1, engine=LAB)
    advice = advise(ModelSpec.from_config("llama-3.2-1b"), machine, workload, calibration=calibration)
    times = {(o.layout.tp, o.layout.pp): o.prediction.tpot_ms for o in advice.options if o.layout.replicas == 1}
    # Of one model over both hosts.
    assert times[2, 2] < times[4, 1]
    assert place(machine, 2, 2, 1).groups == (((0, 1), (2, 3)),)


FAILS = """
import sys
from tplab.cluster.launched import launched

def step(rank):
    import torch, torch.distributed as dist
    if rank.index == int(sys.argv[1]):
        if sys.argv[2] == "raise":
            raise KeyError("no such layer")
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(4))

with launched("gloo") as cluster:
    if cluster is not None:
        cluster.run(step, timeout=100)
        print("went on")
"""


def test_a_rank_that_raises_ends_all_with_its_own_words(hosts, tmp_path):
    (tmp_path / "fails_on_a_rank.py").write_text(FAILS)
    before = {*hosts.beta.pids()}  # engines, where tests of them ran before
    run = torchrun(hosts, ["fails_on_a_rank", "2", "raise"], ranks=(2, 1), env={"PYTHONPATH": str(tmp_path)})
    said = [line for line in run.output["alpha"].splitlines() if line.startswith("tplab: ")]
    assert said == ["tplab: rank 2 of 3 on host beta: KeyError: 'no such layer'"], run.output
    assert "in step" in run.output["alpha"]  # the traceback
    assert "went on" not in run.output["alpha"]
    assert "no such layer" not in run.output["beta"]
    assert all(run.codes.values())
    assert {*hosts.beta.pids()} <= before


def test_a_killed_rank_is_said(hosts, tmp_path):
    (tmp_path / "fails_on_a_rank.py").write_text(FAILS)
    run = torchrun(hosts, ["fails_on_a_rank", "2", "kill"], ranks=(2, 1), env={"PYTHONPATH": str(tmp_path)})
    (said,) = [line for line in run.output["alpha"].splitlines() if line.startswith("tplab: ")]
    assert "rank 0 of 3 on host alpha" in said or "rank 1 of 3 on host alpha" in said
    assert "a rank was killed, or its host is gone" in run.output["alpha"].lower()
    assert "SIGKILL" in run.output["beta"]


def test_a_bad_argument_is_said_once(hosts, tmp_path):
    run = torchrun(hosts, ["tplab.cli", "sweep", "--from-size", "1MiB", "--to-size", "1KiB"], ranks=(2, 1))
    both = run.output["alpha"] + run.output["beta"]
    assert both.count("--from-size must not be above --to-size") == 1
    assert all(run.codes.values())


def test_a_pipeline_and_generation_of_a_box(hosts, tmp_path):
    """``box`` takes fewer of the ranks, too, and what it writes is what a notebook loads."""
    command = ["tplab.cli", "box", str(tmp_path / "box"), "--backend", "gloo", "--steps", "pipeline,generation"]
    command += ["--minutes", "2"]
    run = torchrun(hosts, command, ranks=(1, 1))
    assert run.codes == {"alpha": 0, "beta": 0}, run.output
    assert "failed" not in run.output["alpha"]
    trace = Trace.from_perfetto(tmp_path / "box" / "pipeline-1f1b.json.gz", build_schedule("1f1b", 2, 4))
    assert trace.provenance["link"] == "TCP between 2 hosts"
    generated = list(csv.DictReader((tmp_path / "box" / "generation.csv").open()))
    assert {row["num_ranks"] for row in generated} == {"1", "2"}
    assert {row["link"] for row in generated} == {"none (one rank)", "TCP between 2 hosts"}
