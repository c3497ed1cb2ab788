"""Notebook 08's ledger: every claim with its verdict, filtered; recomputed at a press, or tried on the pool's ranks."""

import threading
from collections import Counter
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import ipywidgets as widgets

from tplab.checks import check_one_of, check_text
from tplab.cluster import Report, RunStopped
from tplab.files import write_text
from tplab.lab import style
from tplab.lab.claims.findings import VERDICTS, Finding
from tplab.lab.claims.ledger import EVIDENCE, TOPICS, Claim, claims, filtered, forget_computed
from tplab.lab.claims.live import LIVE, submit_claim
from tplab.lab.claims.table import claims_frame, claims_markdown
from tplab.lab.panels import html
from tplab.lab.panels.claims import (
    MeasuredClaim,
    evidence_pill,
    inline,
    links_html,
    measured_html,
    numbers_html,
    verdict_pill,
)
from tplab.lab.panels.controls import NamedControls, Settings, panel, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.still import AFTER_A_MOVE_S, Stilled

if TYPE_CHECKING:
    import pandas as pd

    from tplab.cluster.run import DerivedRun

_ANY = "any"
_ENDINGS = (".csv", ".md")
_TABLE_HEIGHT = 640


class LedgerPanel(Stilled, widgets.VBox):
    """The claims ledger as a table with filters; **Recompute** runs every recipe again, **Try it** runs one claim on
    the pool's ranks, **Save** writes what is shown.

    ``show(verdict=, topic=, evidence=, notebook=, text=, claim=, file=)`` sets controls; ``shown`` are the claims that
    the filters leave, ``frame`` the same as a table; ``recompute()``, ``measure()``, ``stop()`` and ``save()`` are what
    the buttons do. ``measured`` has what ranks found, by code.

    Args:
        pool: the ranks.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.measured: dict[str, Finding] = {}
        self._run: DerivedRun[Finding] | None = None
        self._claim = ""
        self._ended = threading.Event()
        look = wide(70)

        def pick(options: Any, text: str) -> Any:
            return widgets.Dropdown(options=options, description=text, **wide(70))

        notebooks = sorted({each for claim in claims().values() for each in claim.notebooks})
        self._named = NamedControls(
            {
                "verdict": pick([_ANY, *VERDICTS], "verdict"),
                "topic": pick([_ANY, *TOPICS], "about"),
                "evidence": pick([_ANY, *EVIDENCE], "evidence"),
                "notebook": pick([_ANY, *notebooks], "notebook"),
                "text": widgets.Text(description="words", placeholder="such as all-reduce", **look),
                "claim": pick([(f"{claim}: {live.what}", claim) for claim, live in LIVE.items()], "try"),
                "file": widgets.Text(value="ledger.csv", description="file", **wide(70)),
            }
        )
        self._recompute = widgets.Button(description="Recompute", icon="refresh")
        self._try = widgets.Button(description="Try it", icon="play", button_style="primary")
        self._stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self._save = widgets.Button(description="Save", icon="save")
        for button in (self._recompute, self._try, self._stop, self._save):
            button.layout.width = "48%"
        self._said = widgets.HTML(html.quiet("Filters leave what fits. Try a claim on the ranks."))
        self._count, self._error, self._found, self._table = (widgets.HTML() for _ in range(4))
        for name in ("verdict", "topic", "evidence", "notebook", "text"):
            self._named[name].observe(lambda _: self._draw(), names="value")
        self._recompute.on_click(lambda _: self.recompute())
        self._try.on_click(lambda _: self._begin())
        self._stop.on_click(lambda _: self.stop())
        self._save.on_click(lambda _: self._saving())
        apart = widgets.Layout(justify_content="space-between")
        left = [
            *(self._named[name] for name in ("verdict", "topic", "evidence", "notebook", "text")),
            self._recompute,
            self._named["claim"],
            widgets.HBox([self._try, self._stop], layout=apart),
            self._named["file"],
            self._save,
            self._said,
        ]
        super().__init__(panel("The ledger", left, [self._count, self._error, self._found, self._table]))
        self.add_class("tplab-ledger")
        self._draw()

    @property
    def shown(self) -> list[Claim]:
        """The claims that the filters leave."""
        values = self._named.settings()
        chosen = {name: values[name] for name in ("verdict", "topic", "evidence", "notebook") if values[name] != _ANY}
        return filtered(**chosen, text=values["text"])

    @property
    def frame(self) -> "pd.DataFrame":
        """The same as a table, with what ranks found; see ``claims_frame``."""
        return claims_frame(self.shown, self.measured)

    def settings(self) -> Settings:
        """What the controls say now."""
        return self._named.settings()

    def show(self, **settings: Any) -> Self:
        """Set controls by name. Raises ``ArgumentError`` for a name or a value that the panel does not offer."""
        self._named.check(settings)
        self._named.put(settings)
        return self

    def recompute(self) -> dict[str, str]:
        """Run every recipe again. Returns the verdicts that follow, by code, of claims whose verdict in the ledger is
        another one: none, or the ledger is wrong."""
        forget_computed()
        found = {claim.id: claim.finding().verdict for claim in claims().values()}
        differing = {claim: verdict for claim, verdict in found.items() if verdict != claims()[claim].verdict}
        cases = sum(len(claim.finding().cases) for claim in claims().values())
        said = f"Computed {cases} cases of {len(found)} claims; "
        said += f"verdicts differ: {', '.join(differing)}." if differing else "every verdict follows from them."
        self._said.value = html.quiet(said)
        self._draw()
        return differing

    def measure(self, claim: str | None = None) -> MeasuredClaim:
        """Press **Try it** and wait: count or measure ``claim``, by default the chosen one, on the pool's ranks.

        Raises ``ArgumentError`` for a claim that ranks cannot try, and what the panel would show as an error.
        """
        if claim is not None:
            check_one_of("claim", claim, LIVE)
            self._named["claim"].value = claim
        self._begin(raise_errors=True)
        assert self._run is not None
        finding = self._run.result()
        self._ended.wait()  # the drawing follows the result
        return MeasuredClaim(claims()[self._claim], finding)

    def stop(self) -> None:
        """Press **Stop**."""
        if self._run is not None:
            self._run.stop()

    def save(self, file: str | None = None) -> Path:
        """Press **Save**: write the claims that are shown as ``.csv``, with what ranks found, or as ``.md``.

        Raises ``ArgumentError`` for another ending, ``OSError`` where the file cannot be written.
        """
        path = Path(check_text("file", self._named["file"].value if file is None else file))
        check_one_of("the ending of file", path.suffix, _ENDINGS)
        write_text(path, self.frame.to_csv(index=False) if path.suffix == ".csv" else claims_markdown(self.shown))
        self._said.value = html.quiet(f"Wrote {path} ({len(self.shown)} claims).")
        return path

    def _saving(self) -> None:
        self._error.value = ""
        try:
            self.save()
        except (OSError, ValueError) as error:
            self._error.value = html.error_card(error)

    def _begin(self, raise_errors: bool = False) -> None:
        if self._run is not None and not self._ended.is_set():
            return
        self._error.value = ""
        self._claim = self._named["claim"].value
        try:
            # A claim that needs more ranks than the pool has starts it anew with as many.
            ranks = max(self.pool.num_ranks, LIVE[self._claim].ranks[0])
            cluster = self.pool.resized(ranks)
            self._ended.clear()
            self._run = submit_claim(cluster, self._claim, on_report=self._on_report)
        except Exception as error:
            self._ended.set()
            self._error.value = html.error_card(error)
            if raise_errors:
                raise
            return
        self._try.disabled, self._stop.disabled = True, False
        self._said.value = html.quiet(f"{self._claim}: {LIVE[self._claim].what} …")
        self.pool.queue(self._run.run, "The ledger")
        self._run.add_done_callback(self._finish)

    def _on_report(self, report: Report) -> None:
        if {"phase", "done", "total"} <= report.fields.keys():
            phase, done, total = (report.fields[name] for name in ("phase", "done", "total"))
            self._said.value = html.quiet(f"{self._claim}: {phase}, {done:,} of {total:,}")

    def _finish(self, run: Any) -> None:
        error = run.exception()
        try:
            if error is None:
                self.measured[self._claim] = run.result()
                self._draw()
                self._found.value = measured_html(claims()[self._claim], run.result())
                self._said.value = html.quiet(f"{self._claim}: done in {run.run.elapsed_s:.2f} s.")
            elif isinstance(error, RunStopped):
                self._said.value = html.quiet(f"{self._claim}: stopped.")
            else:
                self._said.value = html.quiet(f"{self._claim}: failed.")
                self._error.value = html.error_card(error)
        finally:
            self._try.disabled, self._stop.disabled = False, True
            self._ended.set()
            self.settled()

    def _draw(self) -> None:
        shown = self.shown
        verdicts = Counter(claim.verdict for claim in shown)
        pills = "&nbsp; ".join(f"{verdicts[each]} {verdict_pill(each)}" for each in VERDICTS if verdicts[each])
        self._count.value = (
            f'<div style="font-size:13px;color:var(--jp-ui-font-color1,#1F2430)">{len(shown)} of {len(claims())} '
            f"claims&ensp; {pills}</div>"
            if shown
            else html.ribbon("No claim passes all filters: set one of them to any, or leave out a word.")
        )
        rows = (_row(claim, self.measured.get(claim.id)) for claim in shown)
        table = html.table(("", "claim, and what is right", "evidence"), rows)
        self._table.value = f'<div style="max-height:{_TABLE_HEIGHT}px;overflow:auto;margin-top:8px">{table}</div>'
        self.settled(after_s=AFTER_A_MOVE_S)


def _row(claim: Claim, tried: Finding | None) -> tuple[str, ...]:
    evidence = f'<summary style="cursor:pointer">Evidence</summary>{links_html(claim)}'
    where = f'<div style="font-size:11px">notebook {escape(", ".join(claim.notebooks))}</div>'
    here = html.pill(tried.badge, style.badge_colour(tried.badge)) if tried else ""
    return (
        f"<b>{claim.id}</b><br>{verdict_pill(claim.verdict)}",
        f"<i>{inline(claim.claim)}</i><br>{inline(claim.statement())}{numbers_html(claim.finding(), claim)}"
        f'<details style="margin-top:4px">{evidence}</details>',
        "<br>".join([*map(evidence_pill, claim.kinds), *([here] if here else [])]) + where,
    )
