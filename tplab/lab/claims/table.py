"""The ledger as text: a tidy frame for files, the Markdown of docs/article.md, and a claim in plain lines."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tplab.lab.claims.findings import Finding
from tplab.lab.claims.ledger import Claim

if TYPE_CHECKING:
    import pandas as pd

_HEADER = ("code", "verdict", "what is claimed", "what is right", "evidence", "notebooks")


def claims_frame(shown: Sequence[Claim], tried: Mapping[str, Finding] | None = None) -> "pd.DataFrame":
    """A row for each claim: the fields of the ledger as text, ``right`` with its numbers, and ``agree``, how many of
    its cases agree. For claims that were ``tried`` on ranks also ``found`` (case by case) and ``badge``; else empty.
    """
    import pandas as pd

    tried = tried or {}
    rows = []
    for claim in shown:
        cases, live = claim.finding().cases, tried.get(claim.id)
        rows.append(
            {
                "id": claim.id,
                "topic": claim.topic,
                "verdict": claim.verdict,
                "claim": claim.claim,
                "right": claim.statement(),
                "formula": claim.formula,
                "conditions": claim.conditions,
                "where": claim.where,
                "notebooks": " ".join(claim.notebooks),
                "evidence": " ".join(claim.kinds),
                "links": " ".join(dict.fromkeys(each.link for each in claim.evidence)),
                "agree": f"{sum(case.agrees for case in cases)} of {len(cases)}",
                "found": "; ".join(f"{case.what}: {case.right}" for case in live.cases) if live else "",
                "badge": live.badge if live else "",
            }
        )
    return pd.DataFrame(rows)


def claims_markdown(shown: Sequence[Claim]) -> str:
    """A Markdown table, with links as a page in ``docs/`` or ``notebooks/`` writes them."""
    lines = [_row(_HEADER), _row(["---"] * len(_HEADER))]
    for claim in shown:
        evidence = "; ".join(f"{each.kind}: [{each.what}]({link_target(each.link)})" for each in claim.evidence)
        notebooks = ", ".join(claim.notebooks)
        lines.append(_row((claim.id, claim.verdict, claim.claim, claim.statement(), evidence, notebooks)))
    return "\n".join(lines) + "\n"


def claim_text(claim: Claim) -> str:
    """Everything about a claim, line by line."""
    evidence = [f"  {each.kind}: {each.what} <{each.link}>" for each in claim.evidence]
    return "\n".join(
        (
            f"{claim.id} [{claim.verdict}] {claim.claim}",
            f"  {claim.statement()}",
            *case_lines(claim.finding()),
            f"  Formula: {claim.formula}",
            f"  For: {claim.conditions}",
            *evidence,
        )
    )


def case_lines(finding: Finding) -> list[str]:
    """A line for each case of a finding."""
    return [
        f"  {case.what}: claimed {case.claimed}, found {case.right} ({'agrees' if case.agrees else 'differs'})"
        for case in finding.cases
    ]


def link_target(link: str) -> str:
    """A link of the ledger as a page in ``notebooks/`` or ``docs/`` must write it."""
    return link if "://" in link else f"../{link}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
