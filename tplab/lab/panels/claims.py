"""Claim cards and the ledger's table as people see them: verdict, right statement, numbers, evidence, links.

What a verdict means is in ``tplab.lab.claims``; here is only how it looks. A card is HTML, not a widget: it is stored
with the notebook and needs no kernel.
"""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from tplab.lab import style
from tplab.lab.claims.findings import CONDITIONS, HOLDS, UNTESTED, WRONG, Finding
from tplab.lab.claims.ledger import Claim, claims_of
from tplab.lab.claims.live import submit_claim
from tplab.lab.claims.table import case_lines, claim_text, link_target
from tplab.lab.panels import html

if TYPE_CHECKING:
    from tplab.cluster import Cluster

VERDICT_COLOURS = {
    HOLDS: style.WEIGHT_GRADIENT,
    CONDITIONS: style.FORWARD,
    WRONG: style.COLLECTIVE,
    UNTESTED: style.MUTED,
}
"""Colour of the pill of each verdict; the word stands in it."""
_QUIET = "color:var(--jp-ui-font-color2,#5B6472)"
_BORDER = "var(--jp-border-color2,#CBD0D8)"


class ClaimCards:
    """Cards of some claims, as HTML and as text. ``claims`` are what they show."""

    def __init__(self, shown: Sequence[Claim]) -> None:
        self.claims = tuple(shown)

    def _repr_html_(self) -> str:
        cards = "".join(map(card_html, self.claims))
        return (
            '<div class="tplab-claims" style="display:grid;gap:12px;'
            f'grid-template-columns:repeat(auto-fill,minmax(min(420px,100%),1fr))">{cards}</div>'
        )

    def __repr__(self) -> str:
        return "\n\n".join(map(claim_text, self.claims))


def claim_cards(*ids: str) -> ClaimCards:
    """Cards from the ledger, such as ``claim_cards("C9", "C21")``; the numbers are computed now.

    Raises ``ArgumentError`` for a code that the ledger does not have, with those it has.
    """
    return ClaimCards(claims_of(ids))


class MeasuredClaim:
    """What ranks found of a claim, beside what the ledger says of it. ``finding`` has the cases."""

    def __init__(self, claim: Claim, finding: Finding) -> None:
        self.claim, self.finding = claim, finding

    def _repr_html_(self) -> str:
        return measured_html(self.claim, self.finding)

    def __repr__(self) -> str:
        facts = [f"  {name}: {fact}" for name, fact in self.finding.facts.items()]
        return "\n".join((f"{self.claim.id} on these ranks ({self.finding.badge})", *case_lines(self.finding), *facts))


def measure_claim(cluster: "Cluster", claim: str) -> MeasuredClaim:
    """Count or measure a claim on the ranks of ``cluster``, such as ``measure_claim(pool.cluster, "S9")``.

    Raises ``ArgumentError`` for a claim that ranks cannot try, with those they can (C4, C9, C12, C15, C21, S9, X2), and
    for too few ranks; the cluster's faults besides.
    """
    __tracebackhide__ = True
    found = submit_claim(cluster, claim).result()
    return MeasuredClaim(claims_of([claim])[0], found)


def card_html(claim: Claim) -> str:
    """One card."""
    return (
        f'<div class="tplab-claim" style="border:1px solid {_BORDER};border-left:5px solid '
        f"{VERDICT_COLOURS[claim.verdict]};border-radius:4px;padding:10px 14px;font-size:13px;line-height:1.5;"
        'color:var(--jp-ui-font-color1,#1F2430)">'
        f'<div style="display:flex;flex-wrap:wrap;gap:6px;align-items:center"><b style="font-size:15px">{claim.id}</b>'
        f"{verdict_pill(claim.verdict)}{''.join(map(evidence_pill, claim.kinds))}</div>"
        f'<div style="margin-top:6px;{_QUIET}">Claimed: <i>{inline(claim.claim)}</i></div>'
        f'<div style="margin-top:6px">{inline(claim.statement())}</div>'
        f"{numbers_html(claim.finding(), claim)}{links_html(claim)}</div>"
    )


def verdict_pill(verdict: str) -> str:
    """The verdict on its colour."""
    return html.pill(verdict, VERDICT_COLOURS[verdict])


def numbers_html(finding: Finding, claim: Claim) -> str:
    """Every case of a finding, folded, under a line that counts those that agree and says where they come from."""
    if not finding.cases:
        return ""
    agreeing = sum(case.agrees for case in finding.cases)
    return (
        f'<details style="margin-top:6px"><summary style="cursor:pointer;{_QUIET}">Numbers: {agreeing} of '
        f"{len(finding.cases)} agree &middot; {escape(finding.badge)}</summary>"
        f'<div style="overflow-x:auto;margin-top:4px">{_cases_table(finding)}</div>'
        f'<div style="margin-top:4px;{_QUIET}">Formula: {escape(claim.formula)}.<br>For: {escape(claim.conditions)}.'
        "</div></details>"
    )


def measured_html(claim: Claim, finding: Finding) -> str:
    """What ranks found: the badge, a line for each case, and what else there is to say."""
    facts = "".join(f"<li>{escape(name)}: {escape(fact)}</li>" for name, fact in finding.facts.items())
    return (
        f'<div class="tplab-measured" style="font-size:13px;line-height:1.5;color:var(--jp-ui-font-color1,#1F2430)">'
        f"<b>{claim.id} on these ranks</b>&nbsp; {html.pill(finding.badge, style.badge_colour(finding.badge))}"
        f'<div style="overflow-x:auto;margin-top:6px">{_cases_table(finding)}</div>'
        f"{f'<ul style={chr(34)}margin:6px 0{chr(34)}>{facts}</ul>' if facts else ''}</div>"
    )


def _cases_table(finding: Finding) -> str:
    rows = [
        (escape(case.what), escape(case.claimed), escape(case.right), "agrees" if case.agrees else "<b>differs</b>")
        for case in finding.cases
    ]
    return html.table(("case", "claimed", "found", ""), rows)


def links_html(claim: Claim) -> str:
    """A line for each piece of evidence, with its link."""
    links = [
        f'{each.kind}: <a href="{escape(link_target(each.link))}" target="_blank" rel="noopener" style="color:'
        f'var(--jp-content-link-color,#0B5CAD)">{escape(each.what)}</a>'
        for each in claim.evidence
    ]
    return f'<div style="margin-top:6px;font-size:12px;{_QUIET}">{"<br>".join(links)}</div>'


def evidence_pill(kind: str) -> str:
    """A kind of evidence, outlined."""
    return (
        f'<span style="border:1px solid {_BORDER};border-radius:10px;padding:0 8px;font-size:11px;line-height:18px;'
        f'white-space:nowrap;{_QUIET}">{kind}</span>'
    )


def inline(text: str) -> str:
    """Text with what stands in backticks as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))
