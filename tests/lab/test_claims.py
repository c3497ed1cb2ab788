"""The claims ledger: entries that cannot be are refused by name, verdicts follow from numbers, cards show both."""

import re
from pathlib import Path
from string import Formatter

import nbformat
import pytest
import yaml

from tplab.checks import ArgumentError
from tplab.lab import claim_cards
from tplab.lab.claims import (
    Case,
    Finding,
    LedgerError,
    claims,
    claims_frame,
    claims_markdown,
    filtered,
    read_claims,
)
from tplab.lab.claims.findings import at_least, at_most, between, equal

ROOT = Path(__file__).parents[2]
LEDGER = ROOT / "tplab/lab/claims.yaml"
ARTICLE = {
    "holds": ["C1", "C3", "C10", "C14", "C17", "C20"],
    "under conditions": ["C4", "C5", "C8", "C12", "C16", "C18", "C21", "C22"],
    "wrong": ["C2", "C6", "C7", "C9", "C11", "C13", "C15", "C19"],
}
"""What the review of the article found, claim by claim, in the four words."""


def entries() -> list[dict[str, object]]:
    return yaml.safe_load(LEDGER.read_text("utf-8"))


def written(tmp_path: Path, text: object) -> Path:
    path = tmp_path / "claims.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), "utf-8")
    return path


def test_the_ledger_has_every_code_once() -> None:
    systems, numbers = [f"S{i}" for i in range(1, 10)], [f"C{i}" for i in range(1, 23)]
    assert list(claims()) == [*systems, *numbers, "X1", "X2"]


def test_the_verdicts_are_those_of_the_review() -> None:
    found = {
        verdict: [id for id, one in claims().items() if one.verdict == verdict and id[0] == "C"] for verdict in ARTICLE
    }
    assert found == ARTICLE


@pytest.mark.parametrize("id", list(claims()))
def test_the_verdict_follows_from_the_recipe(id: str) -> None:
    claim = claims()[id]
    finding = claim.finding()
    assert finding.verdict == claim.verdict, [case for case in finding.cases if not case.agrees]
    assert {name for _, name, _, _ in Formatter().parse(claim.right) if name} == set(finding.facts)


@pytest.mark.parametrize("id", list(claims()))
def test_evidence_that_is_ours_exists(id: str) -> None:
    ours = [each.link for each in claims()[id].evidence if "://" not in each.link]
    assert ours
    assert [link for link in ours if not (ROOT / link).exists()] == []
    for notebook in claims()[id].notebooks:
        assert list((ROOT / "notebooks").glob(f"{notebook}-*.ipynb"))


def test_notebooks_show_the_cards_that_the_ledger_says() -> None:
    shown: dict[str, set[str]] = {}
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        source = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
        calls = re.findall(r"claim_cards\(([^)]*)\)", source)
        shown[path.name[:2]] = set(re.findall(r'"(\w+)"', " ".join(calls)))
    listed = {number: {claim.id for claim in claims().values() if number in claim.notebooks} for number in shown}
    assert shown == listed


def test_numbers_that_people_quote() -> None:
    said = {id: claim.statement() for id, claim in claims().items()}
    assert "112 MiB" in said["C5"]
    assert "5.00 GiB = 5.37 GB" in said["C6"]
    assert "96 MiB" in said["C7"]
    assert "192 MiB" in said["C7"]
    assert "5 to 7" in said["C12"]
    assert "42.9 %" in said["C12"]
    assert "2.33" in said["C19"]
    assert "53.3" in said["C20"]
    assert "42.7" in said["C20"]
    assert "1.5 S instead of 0.75 S" in said["C4"]


@pytest.mark.parametrize(
    ("agreed", "verdict"),
    [
        ({"a": [True, True]}, "holds"),
        ({"a": [True, False]}, "under conditions"),
        ({"a": [False, False]}, "wrong"),
        ({"a": [True], "b": [True]}, "holds"),
        ({"a": [True], "b": [False]}, "wrong"),
        ({"a": [True, False], "b": [True]}, "under conditions"),
        ({}, "not testable here"),
    ],
)
def test_a_claim_is_as_good_as_its_worst_part(agreed: dict[str, list[bool]], verdict: str) -> None:
    cases = [
        Case(part=part, what="w", claimed="c", right="r", agrees=one) for part, all in agreed.items() for one in all
    ]
    assert Finding(cases=cases).verdict == verdict


def test_cases_agree_within_the_tolerance_and_not_beyond() -> None:
    assert equal("w", 5.12, 5.37, "GB", 0.05).agrees
    assert not equal("w", 5.12, 5.37, "GB", 0.04).agrees
    assert equal("w", 0, 0, "", 0).agrees
    assert between("w", 50, 100, 104, "us", 0.05).agrees
    assert not between("w", 50, 100, 106, "µs", 0.05).agrees
    assert not between("w", 50, 100, 46, "us", 0.05).agrees
    assert at_least("w", 10, 10, "x").agrees
    assert not at_least("w", 10, 9.99, "x").agrees
    assert at_most("w", 10, 10, "x").agrees
    assert not at_most("w", 10, 10.01, "x").agrees
    assert equal("w", 64, 112, "MiB", 0).right == "112 MiB"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("verdict", "holds, mostly", "verdict must be one of holds, under conditions"),
        ("topic", "weather", "topic must be one of memory"),
        ("tolerance", "5 %", "tolerance must be a number from 0"),
        ("tolerance", 1.5, "tolerance must be a number from 0"),
        ("tolerance", True, "tolerance must be a number from 0"),
        ("tolerance", float("nan"), "tolerance must be a number from 0"),
        ("notebooks", "02", "notebooks must be a list"),
        ("notebooks", [2], "notebooks must be a list of texts"),
        ("notebooks", ["2"], "notebooks must be numbers of notebooks in quotes"),
        ("claim", "  ", "claim must be a text"),
        ("recipe", "os.system('x')", "recipe must be module.function"),
        ("recipe", None, "verdict must be 'not testable here' for a claim without a recipe"),
        ("right", "it sends {ring", "right has a brace too many"),
        ("right", "it sends {0}", "right must have names of facts"),
        ("right", "it sends {ring.__class__}", "right must have names of facts"),
        ("evidence", [], "evidence must be a list of at least one"),
        ("evidence", [{"kind": "computed", "what": "w"}], "evidence must have the fields kind, what, link"),
        ("evidence", [{"kind": "heard", "what": "w", "link": "docs/log.md"}], "evidence must be of a kind of computed"),
        ("evidence", [{"kind": "computed", "what": "w", "link": "javascript:x"}], "evidence must link to https"),
        ("id", "Z1", "id must be S, C or X"),
        ("colour", "red", "colour is not a field of a claim"),
    ],
)
def test_a_damaged_entry_names_itself_and_the_field(tmp_path: Path, field: str, value: object, said: str) -> None:
    some = entries()
    some[3][field] = value
    with pytest.raises(LedgerError, match=f"^{'Z1' if field == 'id' else 'S4'}: .*") as caught:
        read_claims(written(tmp_path, some))
    assert said in str(caught.value)


def test_what_is_no_ledger_at_all(tmp_path: Path) -> None:
    first = entries()[0]
    missing = {name: value for name, value in first.items() if name != "formula"}
    for text, said in (
        ("a: [1", "is not YAML"),
        ("", "must be a list of claims"),
        ({"id": "S1"}, "must be a list of claims"),
        (["S1"], "entry 1 of the ledger must be a mapping"),
        ([{}], "entry 1: id is missing"),
        ([missing], "S1: formula is missing"),
        ([first, first], "S1: id must occur once"),
    ):
        with pytest.raises(LedgerError, match=said):
            read_claims(written(tmp_path, text))


def test_a_name_twice_does_not_pass_in_silence(tmp_path: Path) -> None:
    text = yaml.safe_dump(entries()[:2])
    damaged = text.replace("  verdict: wrong", "  verdict: holds\n  verdict: wrong", 1)
    assert damaged != text
    with pytest.raises(LedgerError, match=r"'verdict' stands twice in what begins in line 1$"):
        read_claims(written(tmp_path, damaged))


@pytest.mark.parametrize("recipe", ["volumes.no_such", "no_such_module.tp_layer"])
def test_a_recipe_that_does_not_exist_is_named(tmp_path: Path, recipe: str) -> None:
    claim = read_claims(written(tmp_path, [entries()[3] | {"recipe": recipe}]))["S4"]
    with pytest.raises(LedgerError, match=f"^S4: recipe must be a function in tplab.lab.claims: .*{recipe[:7]}"):
        claim.finding()


def test_a_gap_that_the_recipe_does_not_fill_is_named(tmp_path: Path) -> None:
    claim = read_claims(written(tmp_path, [entries()[0] | {"right": "It is {length}."}]))["S1"]
    with pytest.raises(LedgerError, match=r"^S1: right has a gap, 'length', that its recipe .*, which finds width"):
        claim.statement()


def test_the_least_time_of_many_micro_batches_is_where_the_formula_says() -> None:
    facts = claims()["C14"].finding().facts
    assert facts["best"] == facts["formula"]


def test_filters() -> None:
    assert [one.id for one in filtered(verdict="wrong", topic="memory")] == ["C2"]
    assert {one.id for one in filtered(evidence="recorded")} >= {"C9", "C12"}
    assert [one.id for one in filtered(text="GPipe BUBBLE halves")] == ["C11"]
    assert [one.id for one in filtered(notebook="01")] == ["C1", "C2", "C3"]
    assert len(filtered()) == 33
    assert filtered(text="no such words") == []
    with pytest.raises(ArgumentError, match="verdict must be one of holds, under conditions, wrong"):
        filtered(verdict="maybe")
    with pytest.raises(ArgumentError, match="notebook must be one of 01, 02"):
        filtered(notebook="09")


def test_the_page_about_the_article_has_the_same_table() -> None:
    page = (ROOT / "docs/article.md").read_text("utf-8")
    table = page.partition("<!-- Made by: tplab claims --markdown. -->")[2].partition("<!-- end -->")[0]
    assert table.strip() == claims_markdown(list(claims().values())).strip(), "print it anew: tplab claims --markdown"


def test_the_frame_has_a_row_for_each_claim_and_what_ranks_found() -> None:
    tried = Finding(cases=[equal("16 KiB", 50, 14, "µs", 0.05)], badge="LIVE gloo · 2 ranks")
    frame = claims_frame(filtered(notebook="02"), {"C9": tried}).set_index("id")
    assert frame.loc["C9", "found"] == "16 KiB: 14 µs"
    assert frame.loc["C9", "badge"] == "LIVE gloo · 2 ranks"
    assert frame.loc["C5", "found"] == ""
    assert frame.loc["C5", "agree"] == "1 of 2"
    assert "|" not in claims_markdown(filtered(text="row-split")).splitlines()[2].replace(r"\|", "")[2:-2].replace(
        " | ", ""
    )


def test_cards_show_verdict_statement_numbers_and_links() -> None:
    cards = claim_cards("C5", "S2")
    shown, text = cards._repr_html_(), repr(cards)
    for said in ("C5", "under conditions", "112 MiB", "computed", "counted"):
        assert said in shown
        assert said in text
    assert 'href="../notebooks/02-collectives.ipynb"' in shown
    assert 'href="https://doi.org/10.1016/j.jpdc.2008.09.002"' in shown
    assert "<code>_all_reduce_with_overlap</code>" in shown
    assert shown.count('class="tplab-claim"') == 2
    assert "claimed 64 MiB, found 112 MiB (differs)" in text
    with pytest.raises(ArgumentError, match="claim must be one of S1, S2"):
        claim_cards("C23")
