"""The subcommand ``tplab claims``: thin, calls ``tplab.lab.claims``."""

import argparse
from typing import TYPE_CHECKING

from tplab.checks import ArgumentError
from tplab.cli.words import wrapped, writable, write_csv

if TYPE_CHECKING:
    from tplab.lab.claims.ledger import Claim


def add_claims(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``claims`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "claims",
        help="what is claimed about TP and PP, with the verdict and the numbers it follows from",
        description="List the claims ledger (docs/article.md): each claim with its verdict and the right statement, "
        "whose numbers are computed now. With codes, everything that is known of these.",
    )
    parser.add_argument("claim", nargs="*", metavar="CODE", help="such as C9 or S3 (default: all, in short)")
    parser.add_argument("--verdict", help="holds, 'under conditions', wrong or 'not testable here'")
    parser.add_argument("--topic", help="memory, volume, time, layers, pipeline or topology")
    parser.add_argument("--evidence", help="computed, counted, measured or recorded")
    parser.add_argument("--notebook", help="only what this notebook shows, such as 02")
    parser.add_argument("--text", help="words that must all occur")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table, as in docs/article.md")
    parser.add_argument("--csv", help="also write the table here")
    parser.set_defaults(call=_claims)


def _claims(arguments: argparse.Namespace) -> int:
    from tplab.lab.claims.ledger import claims_of, filtered
    from tplab.lab.claims.table import claim_text, claims_frame, claims_markdown

    out = writable("--csv", arguments.csv) if arguments.csv is not None else None
    filters = {name: getattr(arguments, name) for name in ("verdict", "topic", "evidence", "notebook")}
    shown = filtered(**filters, text=arguments.text or "")
    if arguments.claim:
        asked = {claim.id for claim in claims_of(code.upper() for code in arguments.claim)}
        shown = [claim for claim in shown if claim.id in asked]
    if not shown:
        raise ArgumentError("text", arguments.text, "and the filters leave no claim: leave one out")
    if out is not None:
        write_csv("--csv", claims_frame(shown), out)
    if arguments.markdown:
        print(claims_markdown(shown), end="")
    elif arguments.claim:
        print("\n\n".join("\n".join(map(wrapped, claim_text(claim).splitlines())) for claim in shown))
    else:
        print("\n".join(map(_in_short, shown)))
    return 0


def _in_short(claim: "Claim") -> str:
    indent = " " * 5
    head = wrapped(f"{claim.id:<4} {claim.verdict}: {claim.claim}", indent)
    return f"{head}\n{wrapped(indent + claim.statement(), indent)}"
