"""Claims tried on real ranks: counts are exact, times are on the side that no busy machine moves them from."""

from collections.abc import Mapping

import pytest

from tplab import Cluster
from tplab.checks import ArgumentError
from tplab.collectives import count_sent_bytes
from tplab.lab import measure_claim
from tplab.lab.claims import LIVE, claims, submit_claim

Clusters = Mapping[int, Cluster]


def test_two_all_reduces_per_layer_and_a_message_per_boundary(clusters: Clusters) -> None:
    measured = measure_claim(clusters[4], "S9")
    finding = measured.finding
    assert finding.verdict == "holds"
    assert [case.right for case in finding.cases] == ["2", "2", "1", "1", "1"]
    assert finding.facts["in all"].startswith("9 all-reduces and 1 all-gather a step for 4 layers")
    assert finding.facts["back"].startswith("3 messages")
    assert finding.badge == "LIVE gloo · 4 ranks"
    shown, text = measured._repr_html_(), repr(measured)
    assert "S9 on these ranks" in shown
    assert "PP 4, decode step: messages from stage 2 to 3: claimed 1, found 1 (agrees)" in text


def test_blocks_side_by_side_need_one_all_reduce(clusters: Clusters) -> None:
    finding = measure_claim(clusters[4], "C4").finding
    assert [case.right for case in finding.cases] == ["2", "1", "0"]
    assert finding.verdict == claims()["C4"].verdict
    assert finding.facts["results"] == "equal to the unsharded blocks"
    assert "a rank sends 3 S" in finding.facts["sequence parallel"]
    assert "4.5 S with this backend" in finding.facts["sequence parallel"]


def test_passing_the_whole_tensor_on_sends_n_times_the_bytes(clusters: Clusters) -> None:
    for n in (2, 4):
        finding = measure_claim(clusters[n], "X2").finding
        assert finding.facts["ratio"] == f"{n} times the bytes of a ring"
        assert finding.verdict == "wrong"
    frame = count_sent_bytes(clusters[4], ("whole-tensor",), num_elements=1000)
    assert (frame["counted_bytes"] == frame["formula_bytes"]).all()
    assert (frame["counted_bytes"] == 2 * 3 * 4000).all()


def _whole_tensor_sum(rank, num_elements):
    import torch

    from tplab.collectives.mistakes import whole_tensor_all_reduce

    x = torch.arange(num_elements, dtype=torch.float64) * (rank.index + 1)
    whole_tensor_all_reduce(x, rank.group)
    return x.tolist()


@pytest.mark.parametrize("num_elements", [1, 3, 4, 10])
def test_its_sum_is_right_all_the_same(clusters: Clusters, num_elements: int) -> None:
    for got in clusters[4].run(_whole_tensor_sum, num_elements):
        assert got == [10.0 * i for i in range(num_elements)]


def test_bubbles_of_four_stages(clusters: Clusters) -> None:
    finding = measure_claim(clusters[4], "C12").finding
    assert [case.agrees for case in finding.cases] == [False, True, False]
    assert "emulated compute" in finding.badge


def test_a_send_hides_and_a_sum_in_one_piece_does_not(clusters: Clusters) -> None:
    finding = measure_claim(clusters[4], "C15").finding
    assert finding.verdict == "wrong"
    assert "emulated link" in finding.badge
    assert finding.badge.startswith("LIVE gloo · 2 ranks")
    assert finding.facts["send"].startswith("the call returns after")


def test_messages_of_a_prefill_are_bound_by_bandwidth(clusters: Clusters) -> None:
    cases = measure_claim(clusters[4], "C21").finding.cases
    assert [case.part for case in cases] == ["TP", "TP", "PP", "PP"]
    assert cases[1].right == cases[3].right == "bandwidth"
    assert [len(measure_claim(clusters[4], "C9").finding.cases)] == [4]


def test_what_ranks_cannot_try_is_refused(clusters: Clusters) -> None:
    with pytest.raises(ArgumentError, match="claim must be one that ranks can try: S9, C4, C9"):
        submit_claim(clusters[4], "C1")
    with pytest.raises(ArgumentError, match="claim must be one of S1, S2"):
        submit_claim(clusters[4], "C99")
    few = clusters[4].resized(2)
    with pytest.raises(ArgumentError, match=r"at least 4 ranks for C12: Cluster\(4\)"):
        submit_claim(few, "C12")
    assert {claims()[claim].kinds and one.kind for claim, one in LIVE.items()} == {"counted", "measured"}
    assert [claim for claim, one in LIVE.items() if one.kind not in claims()[claim].kinds] == []
