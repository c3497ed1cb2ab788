"""The ledger as a panel: filters, recomputing, trying a claim on ranks, saving."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tplab.checks import ArgumentError
from tplab.lab import LedgerPanel, Pool
from tplab.lab.claims import ledger

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(num_ranks=2, backend="gloo")
    yield pool
    pool.close()


@pytest.fixture
def panel(pool: Pool) -> LedgerPanel:
    return LedgerPanel(pool)


def test_filters_leave_what_fits(panel: LedgerPanel) -> None:
    assert len(panel.shown) == 33
    panel.show(verdict="wrong", topic="memory")
    assert [claim.id for claim in panel.shown] == ["C2"]
    assert "C2" in panel._table.value
    assert "C1<" not in panel._table.value
    assert "1 of 33" in panel._count.value
    panel.show(verdict="any", topic="any", text="zebra")
    assert panel.shown == []
    assert "No claim passes all filters" in panel._count.value
    with pytest.raises(ArgumentError, match="verdict must be one of any, holds"):
        panel.show(verdict="maybe")
    with pytest.raises(ArgumentError, match="is not a setting of this panel"):
        panel.show(colour="red")


def test_recompute_finds_a_verdict_that_no_longer_follows(panel: LedgerPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert panel.recompute() == {}
    assert "every verdict follows" in panel._said.value
    claims = dict(ledger.claims())
    damaged = type(claims["C5"])(
        **{name: getattr(claims["C5"], name) for name in claims["C5"].__slots__} | {"verdict": "holds"}
    )
    monkeypatch.setattr("tplab.lab.panels.ledger.claims", lambda: {**claims, "C5": damaged})
    assert panel.recompute() == {"C5": "under conditions"}
    assert "verdicts differ: C5" in panel._said.value


def test_a_claim_is_tried_on_the_pools_ranks(panel: LedgerPanel) -> None:
    measured = panel.measure("X2")
    assert measured.finding.facts["ratio"] == "2 times the bytes of a ring"
    assert "X2 on these ranks" in panel._found.value
    assert panel.frame.set_index("id").loc["X2", "badge"] == "LIVE gloo · 2 ranks"
    assert panel._stop.disabled
    with pytest.raises(ArgumentError, match="claim must be one of S9"):
        panel.measure("C1")


def test_stop_ends_a_run_and_says_so(panel: LedgerPanel) -> None:
    panel.show(claim="C9")
    panel._begin()
    panel.stop()
    assert panel._ended.wait(20)
    assert ("stopped" in panel._said.value) or ("C9" in panel.measured)
    assert not panel._try.disabled


def test_saves_what_is_shown(panel: LedgerPanel, tmp_path: Path) -> None:
    panel.show(topic="time")
    frame = pd.read_csv(panel.save(str(tmp_path / "ledger.csv")))
    assert frame["id"].tolist() == ["C9", "C15", "C21"]
    assert (tmp_path / "ledger.md") == panel.save(str(tmp_path / "ledger.md"))
    assert "| C9 | wrong |" in (tmp_path / "ledger.md").read_text("utf-8")
    with pytest.raises(ArgumentError, match=r"the ending of file must be one of \.csv, \.md"):
        panel.save(str(tmp_path / "ledger.xlsx"))
    panel.show(file=str(tmp_path / "no" / "such" / "ledger.csv"))
    panel._saving()
    assert "ledger.csv" in panel._error.value
