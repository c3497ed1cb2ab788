"""The claims ledger: what is claimed about TP and PP, and what came out. Read from ``tplab/lab/claims.yaml``, checked.

Codes are those of docs/article.md: S1 to S9 the systems that the article describes, C1 to C22 what it claims; X1 and
X2 stand elsewhere. The file says which recipe computes an entry's numbers; the verdict in the file is what people may
quote, and the tests hold it against the one that the recipe arrives at.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from string import Formatter
from typing import Any, get_args, get_origin

from tplab.checks import ArgumentError, check_one_of
from tplab.files import read_text
from tplab.lab.claims.findings import UNTESTED, VERDICTS, Finding
from tplab.shown import shown

TOPICS = ("memory", "volume", "time", "layers", "pipeline", "topology")
"""What claims are about."""
EVIDENCE = ("computed", "counted", "measured", "recorded")
"""Kinds of evidence: from a model; calls and bytes of a real run; times of a run here; of a run stored in the lab."""
RECIPES = "tplab.lab.claims"
"""Package that recipes are functions of: ``volumes.tp_layer`` is ``tp_layer`` in its module ``volumes``."""
_ID = re.compile(r"[SCX][1-9]\d?")
_RECIPE = re.compile(r"[a-z_]+\.[a-z][a-z0-9_]*")
_LINK = re.compile(r"https://\S+|(notebooks|docs|tplab)/\S+")


class LedgerError(ValueError):
    """An entry of the ledger that cannot be: says which, and which of its fields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Something a verdict rests on."""

    kind: str
    """One of ``EVIDENCE``."""
    what: str
    """What it is, in a few words."""
    link: str
    """A URL, or a path in the repository."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One entry of the ledger."""

    id: str
    """The code: S, C or X and a number."""
    topic: str
    """One of ``TOPICS``."""
    claim: str
    """What is claimed, in our words."""
    where: str
    """Where it is claimed: ``article, claims``, ``article, systems``, or what else claims it."""
    notebooks: tuple[str, ...]
    """Numbers of the notebooks that show it, such as ``02``."""
    formula: str
    """The formula that decides, in the letters of docs/glossary.md."""
    conditions: str
    """What the numbers are for: model, sizes, ranks."""
    recipe: str | None
    """The function that computes it, such as ``volumes.tp_layer``; None if there is nothing to compute."""
    tolerance: float
    """The share of the right number by which a claimed one may be off."""
    verdict: str
    """One of ``VERDICTS``."""
    right: str
    """The right statement. ``{name}`` is a gap for a fact of the recipe."""
    evidence: tuple[Evidence, ...]
    """What the verdict rests on; at least one."""

    def finding(self) -> Finding:
        """The claimed and the right numbers, computed now (once in a session).

        Raises ``LedgerError`` for a recipe that does not exist.
        """
        if self.recipe is None:
            return Finding(cases=())
        module, _, name = self.recipe.partition(".")
        try:
            recipe: Callable[[float], Finding] = getattr(import_module(f"{RECIPES}.{module}"), name)
        except (ImportError, AttributeError) as error:
            raise _fault(self.id, "recipe", self.recipe, f"must be a function in {RECIPES}: {error}") from None
        return _computed(recipe, self.tolerance)

    def statement(self) -> str:
        """The right statement, with the numbers of the recipe in its gaps.

        Raises ``LedgerError`` for a gap that the recipe does not fill.
        """
        facts = self.finding().facts
        try:
            return self.right.format(**facts)
        except KeyError as error:
            rule = f"has a gap, {error}, that its recipe does not fill, which finds {', '.join(facts) or 'no facts'}"
            raise _fault(self.id, "right", self.right, rule) from None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its evidence, each once, in the order of ``EVIDENCE``."""
        return tuple(kind for kind in EVIDENCE if any(each.kind == kind for each in self.evidence))


@cache
def _computed(recipe: Callable[[float], Finding], tolerance: float) -> Finding:
    return recipe(tolerance)


def forget_computed() -> None:
    """Compute every recipe again when it is asked for next."""
    _computed.cache_clear()


@cache
def claims() -> dict[str, Claim]:
    """All claims by their code, in the order of the file."""
    with as_file(files("tplab.lab") / "claims.yaml") as path:
        return read_claims(path)


def claims_of(claim: Iterable[str]) -> list[Claim]:
    """The claims of these codes. Raises ``ArgumentError`` for a code that the ledger does not have."""
    known = claims()
    return [known[check_one_of("claim", each, known)] for each in claim]


def read_claims(path: "str | Path") -> dict[str, Claim]:
    """Read and check a ledger.

    Raises:
        LedgerError: an entry that lacks a field, has one that the ledger does not know, or a value that cannot be;
            names entry and field. Also for text that is not YAML.
        OSError: no such file.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML's own lets the last of several values win, without a word."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                line = node.start_mark.line + 1
                raise LedgerError(f"{path}: {shown(twice)} stands twice in what begins in line {line}")
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            return made

    try:
        entries = yaml.load(read_text(path), Loader)
    except yaml.YAMLError as error:
        raise LedgerError(f"{path} is not YAML: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise LedgerError(f"{path} must be a list of claims, got {shown(entries)}")
    ledger: dict[str, Claim] = {}
    for number, entry in enumerate(entries, 1):
        claim = _claim(entry, number)
        if claim.id in ledger:
            raise _fault(claim.id, "id", claim.id, "must occur once")
        ledger[claim.id] = claim
    return ledger


def filtered(
    *,
    verdict: str | None = None,
    topic: str | None = None,
    evidence: str | None = None,
    notebook: str | None = None,
    text: str = "",
) -> list[Claim]:
    """The claims that pass every filter; None lets all pass.

    Args:
        verdict: one of ``VERDICTS``.
        topic: one of ``TOPICS``.
        evidence: one of ``EVIDENCE``.
        notebook: number of a notebook, such as ``02``.
        text: words that must all occur in the claim, in either case of letters.
    """
    for name, value, choices in (
        ("verdict", verdict, VERDICTS),
        ("topic", topic, TOPICS),
        ("evidence", evidence, EVIDENCE),
        ("notebook", notebook, sorted({each for claim in claims().values() for each in claim.notebooks})),
    ):
        if value is not None:
            check_one_of(name, value, choices)
    words = text.lower().split()
    return [
        claim
        for claim in claims().values()
        if verdict in (None, claim.verdict)
        and topic in (None, claim.topic)
        and (evidence is None or evidence in claim.kinds)
        and (notebook is None or notebook in claim.notebooks)
        and all(word in _searched(claim) for word in words)
    ]


def _searched(claim: Claim) -> str:
    return " ".join((claim.id, claim.claim, claim.right, claim.formula, claim.conditions, claim.verdict)).lower()


def _claim(entry: Any, number: int) -> Claim:
    where = f"entry {number}"
    if not isinstance(entry, Mapping):
        raise LedgerError(f"{where} of the ledger must be a mapping of fields, got {shown(entry)}")
    where = str(entry.get("id", where))
    made = {one.name: _field(where, one.name, one.type, entry) for one in fields(Claim)}
    for name in entry:
        if name not in made:
            raise _fault(where, str(name), entry[name], f"is not a field of a claim, which has {', '.join(made)}")
    claim = Claim(**made)
    _check(claim)
    return claim


def _field(where: str, name: str, kind: Any, entry: Mapping[str, Any]) -> Any:
    if name not in entry:
        raise LedgerError(f"{where}: {name} is missing")
    value = entry[name]
    if name == "evidence":
        return _evidence(where, value)
    if name == "tolerance":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise _fault(where, name, value, "must be a number from 0 to below 1")
        return float(value)
    if get_origin(kind) is tuple and get_args(kind)[0] is str:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise _fault(where, name, value, "must be a list of texts")
        return tuple(value)
    if name == "recipe" and value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise _fault(where, name, value, "must be a text")
    return " ".join(value.split())


def _evidence(where: str, value: Any) -> tuple[Evidence, ...]:
    names = [one.name for one in fields(Evidence)]
    if not isinstance(value, list) or not value:
        raise _fault(where, "evidence", value, "must be a list of at least one")
    for each in value:
        if not isinstance(each, Mapping) or sorted(map(str, each)) != sorted(names):
            raise _fault(where, "evidence", each, f"must have the fields {', '.join(names)}")
        if not all(isinstance(text, str) and text.strip() for text in each.values()):
            raise _fault(where, "evidence", each, "must have texts in all fields")
        if each["kind"] not in EVIDENCE:
            raise _fault(where, "evidence", each["kind"], f"must be of a kind of {', '.join(EVIDENCE)}")
        if not _LINK.fullmatch(each["link"]):
            raise _fault(where, "evidence", each["link"], "must link to https:// or to notebooks/, docs/ or tplab/")
    return tuple(Evidence(**{name: " ".join(each[name].split()) for name in names}) for each in value)


def _check(claim: Claim) -> None:
    rules: Sequence[tuple[str, Any, bool, str]] = (
        ("id", claim.id, bool(_ID.fullmatch(claim.id)), "must be S, C or X and a number"),
        ("topic", claim.topic, claim.topic in TOPICS, f"must be one of {', '.join(TOPICS)}"),
        ("verdict", claim.verdict, claim.verdict in VERDICTS, f"must be one of {', '.join(VERDICTS)}"),
        (
            "notebooks",
            list(claim.notebooks),
            all(re.fullmatch(r"0\d", each) for each in claim.notebooks),
            "must be numbers of notebooks in quotes, such as '02'",
        ),
        (
            "recipe",
            claim.recipe,
            claim.recipe is None or bool(_RECIPE.fullmatch(claim.recipe)),
            "must be module.function, such as volumes.tp_layer",
        ),
        (
            "verdict",
            claim.verdict,
            (claim.recipe is None) == (claim.verdict == UNTESTED),
            f"must be {UNTESTED!r} for a claim without a recipe, and for no other",
        ),
    )
    for name, value, kept, rule in rules:
        if not kept:
            raise _fault(claim.id, name, value, rule)
    try:
        gaps = [name for _, name, _, _ in Formatter().parse(claim.right) if name is not None]
    except ValueError as error:
        raise _fault(claim.id, "right", claim.right, f"has a brace too many: {error}") from None
    if any(not re.fullmatch(r"[a-z_]+", gap) for gap in gaps):
        raise _fault(claim.id, "right", claim.right, "must have names of facts in its braces")


def _fault(where: str, name: str, value: Any, rule: str) -> LedgerError:
    return LedgerError(f"{where}: {ArgumentError(name, value, rule)}")
