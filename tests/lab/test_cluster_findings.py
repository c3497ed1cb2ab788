"""What the answers of hosts mean: pure, with the answers of hosts that are not to be had here."""

import os
import resource
import stat
from pathlib import Path
from typing import Any

import pytest

from tplab.cluster.hosts import survey
from tplab.cluster.hosts.networks import Address, Interface, Network
from tplab.cluster.hosts.reach import Reached, Unreached
from tplab.lab import cluster_findings as findings
from tplab.lab.cluster_findings import HERE, Trip, nccl_interfaces


def card(name: str, address: str, mtu: int = 1500, up: bool = True) -> Interface:
    loopback = name == "lo"
    addresses = (address,) if address else ()
    return Interface(
        name=name, addresses=addresses, networks=(), up=up, loopback=loopback, mtu=mtu, speed_mbit=None
    )  # fmt: skip


CARDS = [
    card("lo", "127.0.0.1"), card("eth0", "10.0.0.1"), card("eth1", ""), card("docker0", "172.17.0.1"),
    card("ib0", "10.1.0.1"), card("ib1", "10.1.1.1", up=False), card("ens1", "10.2.0.1"),
]  # fmt: skip


def test_versions_that_differ_say_where_and_what_that_breaks() -> None:
    same = {"Python": "3.11.7", "torch": "2.13.0", "numpy": "2.4", "NCCL": ""}
    [check] = findings.versions({HERE: same, "alpha": same})
    assert (check.status, check.found) == (
        "ok", "equal on this kernel and alpha: Python 3.11.7, torch 2.13.0, numpy 2.4"
    )  # fmt: skip
    other = {"Python": "3.11.9", "torch": "2.11.0", "numpy": "2.3", "NCCL": "2.29.7"}
    checks = {each.name: each for each in findings.versions({HERE: same, "alpha": same, "beta": other})}
    assert checks["torch"].found == "2.13.0 on this kernel and alpha; 2.11.0 on beta"
    assert checks["NCCL"].found == "none on this kernel and alpha; 2.29.7 on beta"
    status = {name: check.status for name, check in checks.items()}
    assert status == {"torch": "problem", "NCCL": "problem", "numpy": "note", "Python": "note"}
    [python] = findings.versions({HERE: {"Python": "3.11.7"}, "beta": {"Python": "3.12.1"}})
    assert python.status == "problem"
    assert [each.name for each in findings.versions({HERE: same, "alpha": {"torch": "2.13.0"}})] == ["versions"]


def test_clocks_go_by_the_shortest_trip_and_are_wrong_beyond_a_second() -> None:
    slow, quick = Trip(0.5, 0.2), Trip(0.002, -0.0004)
    check = findings.clocks({"alpha": [slow, quick, slow], "beta": [Trip(0.004, 0.3)]})
    assert check.status == "ok"
    assert "alpha equal, to within 1 ms" in check.found
    assert "beta 300 ms ahead, to within 2 ms" in check.found
    assert "measured" in check.found
    check = findings.clocks({"alpha": [quick], "beta": [Trip(0.004, -7.0)]})
    assert check.status == "note"
    assert "beta 7,000 ms behind" in check.found
    assert "logs of beta cannot" in check.meaning
    assert findings.clocks({"alpha": [Trip(3.0, 1.4)]}).status == "ok"  # it may be as little as 0.1 s wrong


def test_a_slow_way_to_the_controller_is_noted() -> None:
    assert findings.controller({"alpha": [Trip(0.004, 0.0)] * 3}).status == "ok"
    check = findings.controller({"alpha": [Trip(0.004, 0.0)] * 3, "beta": [Trip(0.3, 0.0)] * 3})
    assert check.status == "note"
    assert "beta 300 ms (measured; the median of 3)" in check.found
    assert "output of beta" in check.meaning


def test_pairs_and_packets() -> None:
    addresses = {"alpha": Address("eth0", "10.0.0.1"), "beta": Address("eth0", "10.0.0.2")}
    networks = {
        "alpha": Network(interfaces=(card("eth0", "10.0.0.1", 9000),)),
        "beta": Network(interfaces=(card("eth0", "10.0.0.2"),)),
    }
    both = [Reached("alpha", "beta", 2e-4, "10.0.0.1"), Reached("beta", "alpha", 3e-4, "10.9.0.2")]
    network, way, packets = findings.interfaces(addresses, networks, both)
    assert "2 ways between hosts, all connect (0.2 to 0.3 ms, measured)" in network.found
    assert (way.status, way.found) == ("note", "beta reaches alpha from 10.9.0.2")
    assert (packets.status, packets.found) == ("note", "9000 bytes on alpha; 1500 bytes on beta")
    failed = findings.interfaces(addresses, networks, [both[0], Unreached("beta", "alpha", "No route to host")])[0]
    assert (failed.name, failed.status) == ("beta to alpha", "problem")
    assert failed.meaning == "beta cannot connect to alpha at 10.0.0.1 (interface eth0): No route to host."
    many = findings.interfaces(addresses, networks, [Unreached("beta", "alpha", "No route to host")] * 20)
    assert many[8].found == "12 more pairs of hosts do not connect either"


def test_a_name_that_stands_for_loopback_or_nothing() -> None:
    fine = findings.own_names({"alpha": ("alpha", ["10.0.0.1"])})
    assert fine.status == "ok"
    check = findings.own_names({"alpha": ("a", ["10.0.0.1"]), "beta": ("b", ["127.0.1.1"]), "gamma": ("c", [])})
    assert (check.status, check.found) == ("note", "stand for 127.0.1.1 on beta; for nothing on gamma")


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ("", ["ib0"]), ("eth", ["eth0"]), ("=eth", []), ("=eth0,ens1", ["eth0", "ens1"]), ("^ib,e", ["lo", "docker0"]),
        ("^=eth0,lo", ["docker0", "ib0", "ens1"]),
    ],
)  # fmt: skip
def test_interfaces_that_nccl_takes(asked: str, taken: list[str]) -> None:
    """As its documentation has it (NCCL_SOCKET_IFNAME)."""
    assert nccl_interfaces(CARDS, asked) == taken


def test_without_infiniband_nccl_takes_neither_bridges_nor_loopback() -> None:
    assert nccl_interfaces([each for each in CARDS if not each.name.startswith("ib")]) == ["eth0", "ens1"]


def test_nccls_view_names_variables_that_differ_and_ports_that_are_down() -> None:
    networks = {host: Network(interfaces=tuple(CARDS)) for host in ("alpha", "beta")}
    views: dict[str, Any] = {
        "alpha": {"variables": {"NCCL_IB_HCA": "mlx5_0", "NCCL_DEBUG": "WARN"}, "devices": ["mlx5_0 (IB, 4: ACTIVE)"]},
        "beta": {"variables": {"NCCL_DEBUG": "WARN"}, "devices": ["mlx5_0 (IB, 1: DOWN)"]},
    }  # fmt: skip
    view, port, variable = findings.nccl(views, networks)
    assert "ib0 by itself; mlx5_0 (IB, 1: DOWN) on beta" in view.found
    assert (port.status, port.found) == ("note", "no active port on beta")
    assert (variable.name, variable.found) == ("NCCL_IB_HCA", "mlx5_0 on alpha; not set on beta")


def test_capacity() -> None:
    def host(free_gb: float, *gpus: tuple[str, int]) -> dict[str, Any]:
        return {"cores": 8, "free_bytes": int(free_gb * 1e9), "where": "this machine", "gpus": list(gpus)}

    h100 = ("NVIDIA H100", 80_000_000_000)
    gpus, rest = findings.capacity({"alpha": host(64, h100, h100), "beta": host(64, h100, h100)})
    assert (gpus.status, gpus.found) == ("ok", "2 x NVIDIA H100 80 GB on alpha and beta")
    assert (rest.status, rest.found) == ("ok", "8 cores, 64.0 GB free on alpha and beta")
    gpus, rest = findings.capacity({"alpha": host(64, h100), "beta": host(0.4), "gamma": host(0.2)})
    assert (gpus.status, gpus.found) == ("note", "1 x NVIDIA H100 80 GB on alpha; none on beta and gamma")
    assert rest.status == "problem"
    assert "fewer than two on beta and gamma" in rest.meaning
    assert findings.capacity({"alpha": host(64), "beta": host(0.4)})[1].status == "note"


def test_limits_matter_where_they_bind() -> None:
    few = {"alpha": {"files": 256, "locked": 65536}, "beta": {"files": -1, "locked": -1}}
    [files] = findings.limits(few, {})
    assert (files.status, files.found) == ("note", "at most 256 on alpha; as many as wanted on beta")
    files, locked = findings.limits(few, {"alpha": ["mlx5_0"], "beta": ["mlx5_0"]})
    assert (locked.status, locked.found) == ("problem", "at most 64 KiB on alpha")


def test_batch_systems() -> None:
    one = {"SLURM_JOB_ID": "17"}
    assert findings.scheduler({"alpha": one, "beta": one}).found == "Slurm job 17 on alpha and beta"
    check = findings.scheduler({"alpha": one, "beta": {"SLURM_JOB_ID": "18"}, "gamma": {}})
    assert (check.status, check.found) == ("note", "Slurm job 17 on alpha; Slurm job 18 on beta; none on gamma")


class TestSurvey:
    """The questions themselves, asked of this machine."""

    def test_first_look_needs_nothing_but_python(self) -> None:
        there: dict[str, Any] = {}
        exec(survey.FIRST_LOOK, there)
        said = there["tplab_first_look"]()
        assert said["error"] == ""
        assert said["versions"]["torch"].startswith("2.")
        assert said["hostname"] == os.uname().nodename

    def test_nccls_files_give_way_to_the_environment(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "nccl.conf").write_text("# ours\nNCCL_DEBUG=WARN\nNCCL_IB_DISABLE = 1\n")
        monkeypatch.setenv("NCCL_CONF_FILE", str(tmp_path / "nccl.conf"))
        monkeypatch.setenv("NCCL_DEBUG", "INFO")
        variables = survey.nccl_view()["variables"]
        assert (variables["NCCL_DEBUG"], variables["NCCL_IB_DISABLE"]) == ("INFO", "1")

    def test_limits_and_capacity(self) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert survey.limits()["files"] == (-1 if soft == resource.RLIM_INFINITY else soft)
        assert survey.capacity()["cores"] >= 1
        assert survey.capacity()["free_bytes"] > 0

    def test_cuda_of_torch_is_that_of_its_build(self) -> None:
        import torch

        assert survey.built_with()["CUDA"] == (torch.version.cuda or "")

    def test_tokens(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(survey, "_SLOW_FOLDERS_S", 0.1)
        name, text = survey.leave_token(str(tmp_path))
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert survey.read_token(str(tmp_path), name) == text
        survey.remove_token(str(tmp_path), name)
        assert survey.read_token(str(tmp_path), name) is None
        assert list(tmp_path.iterdir()) == []
