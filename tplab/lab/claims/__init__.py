"""The claims ledger: what is claimed about TP and PP, and what came out (docs/article.md explains the codes).

ledger      entries read from tplab/lab/claims.yaml, checked
findings    cases, each claimed beside right; the verdict that follows
memory, volumes, times, layers, pipelines, links   a recipe for each claim, pure
live        claims that ranks can try
table       the ledger as a frame and as Markdown
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.lab.claims.findings import VERDICTS as VERDICTS
    from tplab.lab.claims.findings import Case as Case
    from tplab.lab.claims.findings import Finding as Finding
    from tplab.lab.claims.ledger import Claim as Claim
    from tplab.lab.claims.ledger import LedgerError as LedgerError
    from tplab.lab.claims.ledger import claims as claims
    from tplab.lab.claims.ledger import filtered as filtered
    from tplab.lab.claims.ledger import read_claims as read_claims
    from tplab.lab.claims.live import LIVE as LIVE
    from tplab.lab.claims.live import submit_claim as submit_claim
    from tplab.lab.claims.table import claims_frame as claims_frame
    from tplab.lab.claims.table import claims_markdown as claims_markdown

__getattr__, __dir__, __all__ = lazy_names(__name__)
