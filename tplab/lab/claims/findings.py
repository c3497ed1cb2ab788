"""What a recipe finds: cases, each with the number that was claimed and the one that is right; the verdict follows.

A claim has parts ("less bubble *and* less communication"), a part is tried in cases. A part that agrees in all of its
cases holds, one that agrees in none is wrong, any other holds under conditions. A claim is as good as its worst part.
Pure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tplab.shown import fixed

HOLDS, CONDITIONS, WRONG, UNTESTED = VERDICTS = ("holds", "under conditions", "wrong", "not testable here")
"""The four words a claim can be judged by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One situation in which a claim is tried."""

    part: str
    """Part of the claim that is tried; one name for all where the claim has one part."""
    what: str
    """The situation, in words."""
    claimed: str
    """What the claim says of it, with its unit."""
    right: str
    """What was computed, counted or measured, with its unit."""
    agrees: bool
    """Whether the two are the same within the claim's tolerance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What came out of a recipe or of a measurement."""

    cases: Sequence[Case]
    """Every case that was tried; at least one."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Numbers that the sentence about the claim quotes, by the name of its gap, with their units."""
    badge: str = "MODEL"
    """Where the numbers come from."""

    @property
    def verdict(self) -> str:
        """The word that follows from the cases."""
        return verdict_of(self.cases)


def verdict_of(cases: Sequence[Case]) -> str:
    """``holds``, ``under conditions`` or ``wrong``; ``not testable here`` without a case."""
    parts: dict[str, list[bool]] = {}
    for case in cases:
        parts.setdefault(case.part, []).append(case.agrees)
    if not parts:
        return UNTESTED
    if not all(any(agreed) for agreed in parts.values()):
        return WRONG
    return HOLDS if all(map(all, parts.values())) else CONDITIONS


def equal(what: str, claimed: float, right: float, unit: str, tolerance: float, part: str = "") -> Case:
    """The claim is a number, which may be off by a share ``tolerance`` of the right one.

    Args:
        what: the situation.
        claimed, right: in ``unit``.
        unit: of both; empty for a plain number.
        tolerance: as a share of the right number.
        part: of the claim.
    """
    agrees = math.isclose(claimed, right, rel_tol=0, abs_tol=tolerance * abs(right) + 1e-12)
    return Case(part=part, what=what, claimed=said(claimed, unit), right=said(right, unit), agrees=agrees)


def between(what: str, low: float, high: float, right: float, unit: str, tolerance: float, part: str = "") -> Case:
    """The claim is a range, whose ends may be off by a share ``tolerance``.

    Args:
        what: the situation.
        low, high: the range.
        right: the right number.
        unit: of all three; ``%`` for shares.
        tolerance: as a share of the ends.
        part: of the claim.
    """
    agrees = low * (1 - tolerance) <= right <= high * (1 + tolerance)
    claimed = f"{said(low, '')} to {said(high, unit)}"
    return Case(part=part, what=what, claimed=claimed, right=said(right, unit), agrees=agrees)


def at_least(what: str, least: float, right: float, unit: str, part: str = "") -> Case:
    """The claim is a lower bound.

    Args:
        what: the situation.
        least, right: in ``unit``.
        unit: of both.
        part: of the claim.
    """
    claimed = f"at least {said(least, unit)}"
    return Case(part=part, what=what, claimed=claimed, right=said(right, unit), agrees=right >= least)


def at_most(what: str, most: float, right: float, unit: str, part: str = "") -> Case:
    """The claim is an upper bound.

    Args:
        what: the situation.
        most, right: in ``unit``.
        unit: of both.
        part: of the claim.
    """
    claimed = f"at most {said(most, unit)}"
    return Case(part=part, what=what, claimed=claimed, right=said(right, unit), agrees=right <= most)


def chosen(what: str, claimed: str, right: str, part: str = "", agrees: bool | None = None) -> Case:
    """The claim is a choice, such as a layout; it agrees if it is the right one, unless ``agrees`` says otherwise.

    Args:
        what: the situation.
        claimed, right: the two choices, in words.
        part: of the claim.
        agrees: for choices that are more alike than their words.
    """
    same = claimed == right if agrees is None else agrees
    return Case(part=part, what=what, claimed=claimed, right=right, agrees=same)


def said(number: float, unit: str) -> str:
    """A number with three digits and its unit: ``112 MiB``, ``0.53``, ``27.3 %``."""
    text = f"{number:,.0f}" if abs(number) >= 1000 or number == round(number) else fixed(number)
    return f"{text} {unit}".rstrip()
