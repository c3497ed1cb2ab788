"""Notebook 02's race: the moving picture, and below it the same race on real ranks."""

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from tplab.checks import ArgumentError
from tplab.cluster import Cluster
from tplab.collectives.emulated_link import EmulatedLink
from tplab.collectives.measured_race import LEAST_LATENCY_US, RacePlan, plan_race, race_frame, race_link, submit_race
from tplab.lab.choice import Choice
from tplab.lab.figures.collectives import explain_race, race_figure
from tplab.lab.known_links import THIS_MACHINE
from tplab.lab.panels import html
from tplab.lab.panels.base import Drawing, RunPanel, Submitted
from tplab.lab.panels.check_boxes import CheckBoxes
from tplab.lab.panels.controls import Settings, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work
from tplab.lab.pictures.race import RACERS, Race
from tplab.lab.predict import Predict
from tplab.lab.still import Part
from tplab.measure import joined_badge, link_text
from tplab.shown import algorithm_text, bytes_text

_OWN, _DECLARED = "own", "declared"
_SIZES = tuple(1 << power for power in range(10, 31))


class RacePanel(RunPanel):
    """The race (``race``, see :class:`~tplab.lab.pictures.Race`), and its measurement on the pool's ranks.

    Run measures what the race shows: as many ranks, bytes and algorithms, over the ranks' own link, whose latency and
    bandwidth the race then takes, or over a link declared as in the race, emulated over gloo. The times stand beside
    the racers; ``frame`` holds the last ones.

    Args:
        pool: the ranks; the race begins with as many.
        nbytes: bytes of the tensor that each rank holds.
        after: a prediction that the counts of bytes would give away.
    """

    def __init__(self, pool: Pool, *, nbytes: int = 1 << 18, after: Predict | None = None) -> None:
        self.race = race = Race(min(8, max(2, pool.num_ranks)), nbytes, after=after)
        sizes = sorted({*_SIZES, nbytes})
        named: dict[str, Any] = {
            "link": widgets.Dropdown(options=[("the ranks' own", _OWN)], description="Link", **wide(40)),
            "num_ranks": widgets.IntSlider(min=2, max=8, description="GPUs"),
            "nbytes": widgets.SelectionSlider(
                options=[(bytes_text(size), size) for size in sizes], description="size S"
            ),
            "algorithms": CheckBoxes(
                [(algorithm_text(each), each) for each in RACERS], value=race.algorithms, description="racers"
            ),
            "alpha_us": widgets.BoundedFloatText(min=0.0, max=1e7, description="α in µs"),
            "beta_GBps": widgets.BoundedFloatText(min=1e-6, max=1e6, description="β in GB/s"),
        }
        for name, control in named.items():
            if name != "link":
                widgets.dlink((race, name), (control, "value"), tuple if name == "algorithms" else None)
        self.frame: Any = None
        self._told: Any = None  # the run whose link the race has taken
        super().__init__(pool, title="The same race on real ranks", named=named, height=300)
        column = self.children[1].children[0]  # type: ignore[has-type]
        followers = [control for name, control in named.items() if name != "link"]  # they are the sliders of the race
        column.children = [child for child in column.children if child not in followers]
        self.children = (widgets.HTML(html.heading("All-reduce race")), race, *self.children)  # type: ignore[has-type]

    def configure(self, **settings: Any) -> "RacePanel":
        """Set the link by name, and the race's sliders. Raises ``ArgumentError`` for what they do not offer."""
        self._named.check(settings)
        for name, value in settings.items():
            if name == "link":
                self._named.put({name: value})
            else:
                setattr(self.race, name, list(value) if isinstance(value, Sequence) else value)
        return self

    def still(self) -> Sequence[Part]:
        """The picture first, under its own heading; then the run as every run panel has it."""
        _, settings, status, *rest = super().still()
        race = self.race.still()
        heading, *run = rest[len(race) :]
        return [*race, heading, settings, status, *run]

    def suit(self, choice: Choice) -> None:
        """Offer an emulated link on the CPU."""
        emulated = [] if choice.on_gpus else [("as in the race, emulated", _DECLARED)]
        self._named["link"].options = [("the ranks' own", _OWN), *emulated]

    def measures(self, settings: Settings) -> Settings:
        """On the ranks' own link the race's α and β change nothing."""
        own = settings["link"] == _OWN
        return {name: value for name, value in settings.items() if not (own and name in ("alpha_us", "beta_GBps"))}

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        n = settings["num_ranks"]
        if n > cluster.num_ranks:
            there = (
                f"must be at most the {cluster.num_ranks} ranks of the pool: move the slider of the race, or start more"
            )
            raise ArgumentError("num_ranks", n, there)
        ranks = cluster if n == cluster.num_ranks else cluster.resized(n)
        link = None
        if settings["link"] == _DECLARED:
            if settings["alpha_us"] < LEAST_LATENCY_US:
                rule = (
                    f"must be at least {LEAST_LATENCY_US:.0f} µs to be emulated, for gloo itself takes so long a step"
                )
                raise ArgumentError("alpha_us", settings["alpha_us"], f"{rule}: move α of the race")
            link = EmulatedLink(latency_us=settings["alpha_us"], bandwidth_GBps=settings["beta_GBps"])
            self.race.own_links = True  # which is what is emulated
        plan = plan_race(ranks, settings["algorithms"], settings["nbytes"], link=link)
        return submit_race(ranks, plan, on_report=self.on_report), (ranks, plan)

    def draw(self, work: Work) -> Drawing:
        ranks, plan = work.plan
        reports = list(work.run.reports)
        frame = race_frame(plan, reports, ranks.provenance)
        if frame.empty:
            return None, ""
        self.frame = frame
        badge = ranks.badge if plan.link is None else joined_badge(ranks.badge, link_text(plan.link))
        self._tell(work, plan, badge)
        return race_figure(frame, badge=badge), html.quiet(explain_race(frame))

    def _tell(self, work: Work, plan: RacePlan, badge: str) -> None:
        """Put the times beside the racers, and the link that was measured into the race."""
        rows = [
            {
                "algorithm": row["algorithm"],
                "num_ranks": row["num_ranks"],
                "nbytes": row["bytes"],
                "us": row["p50_us"],
                "badge": badge,
                "at": work.began_at,
            }
            for row in self.frame.to_dict("records")
        ]
        key = ("algorithm", "num_ranks", "nbytes", "badge")
        new = {tuple(row[name] for name in key) for row in rows}
        kept = [row for row in self.race.measured if tuple(row[name] for name in key) not in new]
        self.race.measured = [*kept, *rows]
        link = race_link(plan, work.run.reports)
        if plan.link is None and link is not None and link.beta_GBps < float("inf") and self._told is not work.run:
            self._told = work.run
            self.race.own_links = False
            self.race.offer(THIS_MACHINE, link)
