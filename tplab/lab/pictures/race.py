"""The all-reduce race: ring, recursive doubling, one-shot and two-shot on one clock, in simulated time."""

from collections.abc import Mapping, Sequence
from typing import Any

import traitlets

from tplab.checks import check_all_of, check_count, check_number
from tplab.collectives.cost import AlphaBeta, time_us
from tplab.lab.known_links import LINKS
from tplab.lab.pictures.picture import Picture
from tplab.lab.predict import Predict

RACERS = ("one-shot", "recursive-doubling", "two-shot", "ring")
"""Algorithms that can take part, by their names in ``volumes.ALGORITHMS``."""
_UNDER_WAY = 0.28


class Race(Picture):
    """GPUs on a circle, what they send each other, and a clock; sliders for size, alpha, beta and the number of GPUs.

    Times are those of :func:`tplab.collectives.time_us`, and the messages those of the algorithms in
    ``tplab.collectives``; both are computed in the browser. ``times_us`` are the same times here.

    Args:
        num_ranks: GPUs, 2 to 8.
        nbytes: bytes of the tensor that each of them holds.
        link: latency and bandwidth of one rank; by default the first of ``LINKS``.
        algorithms: who runs, out of ``RACERS``.
        own_links: whether every two GPUs have a link of their own (``ports`` of ``time_us``), not each GPU one for all.
        after: a prediction that the counts of bytes would give away: they are left out until a number was committed, or
            the answer shown without one.

    ``measured``: dictionaries of ``algorithm``, ``num_ranks``, ``nbytes``, ``us``, ``badge`` and ``at``
    (time of day), shown beside the race that has as many ranks and bytes.
    """

    module = "race"
    caption = "All-reduce race"

    num_ranks = traitlets.Int(4, min=2, max=8).tag(sync=True)
    nbytes = traitlets.Int(1 << 18, min=1).tag(sync=True)
    alpha_us = traitlets.Float().tag(sync=True)
    beta_GBps = traitlets.Float().tag(sync=True)
    algorithms = traitlets.List(trait=traitlets.Unicode()).tag(sync=True)
    own_links = traitlets.Bool(False).tag(sync=True)
    at = traitlets.Float(0.0, min=0.0, max=1.0).tag(sync=True)
    """Where the clock stands at first, as a part of the slowest one's time."""
    covered = traitlets.Bool(False).tag(sync=True)
    links = traitlets.List(trait=traitlets.Dict()).tag(sync=True)
    measured = traitlets.List(trait=traitlets.Dict()).tag(sync=True)

    def __init__(
        self,
        num_ranks: int = 4,
        nbytes: int = 1 << 18,
        *,
        link: AlphaBeta | None = None,
        algorithms: Sequence[str] = ("one-shot", "recursive-doubling", "ring"),
        own_links: bool = False,
        after: Predict | None = None,
    ) -> None:
        link = link or next(iter(LINKS.values()))
        super().__init__(
            num_ranks=check_count("num_ranks", num_ranks, least=2, most=8),
            nbytes=check_count("nbytes", nbytes, least=1),
            alpha_us=link.alpha_us,
            beta_GBps=link.beta_GBps,
            algorithms=list(check_all_of("algorithms", algorithms, RACERS)),
            own_links=own_links,
            covered=after is not None,
            links=[_offer(name, each) for name, each in LINKS.items()],
        )
        self._cover = None
        if after is not None:
            self._cover = after.afterwards(self._uncover)
            self.observe(lambda change: change.new or after.reveal(), names="covered")

    def _uncover(self) -> None:
        self.covered = False

    @traitlets.validate("algorithms", "alpha_us", "beta_GBps")
    def _can_be_run(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if name == "algorithms":
            return list(check_all_of(name, value, RACERS))
        return check_number(name, value, above=0) if name == "beta_GBps" else check_number(name, value, least=0)

    def still_state(self) -> Mapping[str, Any]:
        """In the midst of the race: before it nothing has been sent."""
        return {**self.state(), "at": self.at or _UNDER_WAY}

    @property
    def link(self) -> AlphaBeta:
        """What the sliders say."""
        return AlphaBeta(alpha_us=self.alpha_us, beta_GBps=self.beta_GBps)

    @property
    def times_us(self) -> Mapping[str, float]:
        """Microseconds of each algorithm in the race, by name, with what the sliders say."""
        ports = self.num_ranks - 1 if self.own_links else 1
        settings = (self.nbytes, self.num_ranks, self.alpha_us, self.beta_GBps)
        return {name: time_us(name, *settings, ports=ports) for name in self.algorithms}

    def offer(self, name: str, link: AlphaBeta) -> None:
        """Offer ``link`` as the first choice, and choose it."""
        self.links = [_offer(name, link), *(each for each in self.links if each["name"] != name)]
        self.alpha_us, self.beta_GBps = link.alpha_us, link.beta_GBps


def _offer(name: str, link: AlphaBeta) -> dict[str, Any]:
    return {"name": name, "alpha_us": link.alpha_us, "beta_GBps": link.beta_GBps}
