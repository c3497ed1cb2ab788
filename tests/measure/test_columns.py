"""Provenance columns: one spelling of emulated links, and the older ones understood."""

from dataclasses import replace

import pytest

from tplab.cluster import Provenance
from tplab.collectives import EmulatedLink, LinkTable
from tplab.measure import is_emulated, joined_badge, link_text, newest_spelling, provenance_columns

LINK = EmulatedLink(latency_us=200, bandwidth_GBps=0.05)
TABLE = LinkTable(default=LINK, overrides={(0, 1): EmulatedLink(latency_us=1, bandwidth_GBps=float("inf"))})
PROVENANCE = Provenance(
    backend="gloo",
    num_ranks=2,
    device="a CPU",
    num_devices=1,
    link="TCP over loopback",
    num_cores=2,
    torch_version="2.13",
    nccl_version="",
    python_version="3.11",
    started_at="2026-11-24T12:00:00+00:00",
)


def test_links_have_one_spelling() -> None:
    assert link_text(LINK) == "emulated link 200 us, 0.05 GB/s"
    assert link_text(LinkTable(default=LINK)) == link_text(LINK)
    assert link_text(TABLE) == "emulated link 200 us, 0.05 GB/s, 1 pair differs"
    assert link_text(None, "TCP over loopback") == "TCP over loopback"
    assert link_text(None) == ""


@pytest.mark.parametrize("old", [f"emulated: {LINK}", str(LINK), f"emulated link {LINK}", f"emulated: {TABLE}"])
def test_older_spellings_are_understood(old: str) -> None:
    assert is_emulated(old)
    assert newest_spelling(old) in (link_text(LINK), link_text(TABLE))


def test_thousands_and_links_of_latency_only_are_written_for_people() -> None:
    slow = EmulatedLink(latency_us=2000, bandwidth_GBps=float("inf"))
    assert link_text(slow) == "emulated link 2,000 us, no bandwidth limit"
    assert newest_spelling("emulated: 2000 us, inf GB/s") == link_text(slow)
    assert newest_spelling("NVLink 2000 us") == "NVLink 2000 us"  # not ours


@pytest.mark.parametrize("own", ["TCP over loopback", "NCCL between GPUs", "", "emulated compute"])
def test_the_backends_own_link_is_none(own: str) -> None:
    assert not is_emulated(own)
    assert newest_spelling(own) == own


def test_columns_are_the_provenances_with_link_and_launch_mode() -> None:
    assert provenance_columns(PROVENANCE) == PROVENANCE.columns()
    assert list(provenance_columns(PROVENANCE, link=LINK)) == list(PROVENANCE.columns())
    changed = provenance_columns(PROVENANCE, link=LINK, launch_mode="graph")
    assert changed == PROVENANCE.columns() | {"link": f"emulated link {LINK}", "launch_mode": "graph"}


def test_a_badge_leaves_out_what_is_empty() -> None:
    assert joined_badge("LIVE gloo · 2 ranks", "", link_text(LINK)) == f"LIVE gloo · 2 ranks · emulated link {LINK}"
    assert joined_badge("", link_text(None)) == ""


def test_a_badge_says_how_many_hosts() -> None:
    assert PROVENANCE.badge == "LIVE gloo · 2 ranks"
    assert replace(PROVENANCE, num_hosts=2).badge == "LIVE gloo · 2 ranks on 2 hosts"
    on_gpus = replace(PROVENANCE, backend="nccl", num_ranks=4, num_devices=4, num_hosts=2)
    assert on_gpus.badge == "LIVE nccl · 4 ranks on 4 GPUs of 2 hosts"
