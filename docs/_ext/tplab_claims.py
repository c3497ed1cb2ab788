"""``{claims}``: the ledger as a page, with the numbers that every verdict follows from, computed while it is built."""

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tplab.lab.claims import VERDICTS, Claim, claims


class Claims(SphinxDirective):
    """``{claims}``: which claims have which verdict, then every claim."""

    def run(self) -> list[nodes.Node]:
        ledger = claims().values()
        lines = []
        for verdict in VERDICTS:
            shown = [claim for claim in ledger if claim.verdict == verdict]
            lines.append(f"| {verdict} | {' '.join(f'[{c.id}](#{c.id.lower()})' for c in shown)} |")
        table = ["| verdict | claims |", "|---|---|", *lines, ""]
        box = nodes.section()
        text = [*table, *(line for claim in ledger for line in self._words(claim))]
        self.state.nested_parse(StringList(text, source="tplab/lab/claims.yaml"), self.content_offset, box)
        return list(box.children)

    @staticmethod
    def _words(claim: Claim) -> list[str]:
        cases = claim.finding().cases
        mark = claim.verdict.replace(" ", "-")
        lines = [
            "---",
            "",
            f"({claim.id.lower()})=",
            f"**{claim.id}** {claim.claim}",
            "",
            f"[{claim.verdict}]{{.verdict .{mark}}}",
        ]
        lines += [" " + claim.statement(), "", f"Decided by: {claim.formula}. For: {claim.conditions}.", ""]
        if cases:
            lines += ["| case | claimed | found | |", "|---|---|---|---|"]
            lines += [_row(c.what, c.claimed, c.right, "agrees" if c.agrees else "differs") for c in cases]
        lines += ["", "Evidence:", ""]
        for each in claim.evidence:
            link = each.link if "://" in each.link else f"../{each.link}"
            lines.append(f"- {each.kind}: [{each.what}]({link})")
        return [*lines, ""]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("claims", Claims)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
