"""The pool: the ranks of a notebook as a chip with Start and Stop."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any

import ipywidgets as widgets

from tplab.checks import check_count
from tplab.cluster import Cluster, ClusterError, Run, State
from tplab.cluster.backends import devices_of
from tplab.cluster.cluster import MAX_LOCAL_RANKS
from tplab.cluster.idle import check_minutes, default_minutes
from tplab.cluster.latency import last_rank
from tplab.lab import style
from tplab.lab.choice import Choice, choices
from tplab.lab.panels import html
from tplab.lab.panels.versions import hint
from tplab.lab.still import Part, Stilled

_STATE_WORDS = {
    State.DOWN: ("● down, next run starts fresh ranks", style.MUTED),
    State.STARTING: ("● starting", style.FORWARD),
    State.READY: ("● ready", style.WEIGHT_GRADIENT),
    State.RUNNING: ("● running", style.COLLECTIVE),
    State.CLOSED: ("● stopped", style.MUTED),
}
_SHOWN_S = 0.05  # phases of a start that took less are not worth a reader's time
_SIZES = (1, 2, 3, 4, 8, 16)


class Pool(Stilled, widgets.VBox):
    """The ranks a notebook's panels share: a chip with their state, how many there are, what they run on, Start and
    Stop.

    ``pool.start()`` and ``pool.stop()`` are what the buttons do; ``pool.cluster`` is the running :class:`Cluster`
    (started if need be), for cells that call ``cluster.run`` themselves; ``pool.choice`` says what it runs on.

    Args:
        num_ranks: world size; the chip changes it.
        backend: ``auto``, the best that the machine has, or ``gloo``, or ``nccl``; the chip changes it.
        idle_minutes: end the ranks after so many minutes without a run, to leave their memory to others; 0: never.
            None: what the variable TPLAB_IDLE_MINUTES says, else 30 under JupyterHub, else never.
    """

    def __init__(self, num_ranks: int = 2, backend: str = "auto", *, idle_minutes: float | None = None) -> None:
        self._told: list[Callable[[Choice], None]] = []
        self._launched: list[Callable[[Cluster], None]] = []
        self._watched: list[Callable[[], None]] = []
        self._queued: list[tuple[Run[Any], str]] = []  # in the order in which the ranks take them
        self._settling = False  # a list that is offered anew selects its first entry for a moment
        self._cluster: Cluster | None = None  # first of all: what a failed call leaves is closed, too
        self._idle_minutes = check_minutes(default_minutes() if idle_minutes is None else idle_minutes)
        backend = devices_of(check_count("num_ranks", num_ranks, least=1, most=MAX_LOCAL_RANKS), backend).backend
        self._size = widgets.Dropdown(
            layout=widgets.Layout(width="110px"),
            **hint("World size of the next start"),
        )
        self._runs_on = widgets.Dropdown(
            layout=widgets.Layout(width="210px"),
            **hint(
                "What the ranks of the next start speak and compute on; cells that were sized for another have to be "
                "run again"
            ),
        )
        self._start = widgets.Button(description="Start", icon="play", tooltip="Start the ranks, or replace them")
        self._stop = widgets.Button(description="Stop", icon="stop", tooltip="End the ranks and what they run")
        self._size.observe(lambda _: self._offer(), names="value")
        self._runs_on.observe(lambda _: self._tell(), names="value")
        self.num_ranks = num_ranks
        self._runs_on.value = backend
        for button in (self._start, self._stop):
            button.layout.width, button.layout.min_width = "auto", "90px"
        self._chip = widgets.HTML()
        self._detail = widgets.HTML()
        self._start.on_click(lambda _: self._launch())
        self._stop.on_click(lambda _: self.stop())
        row = widgets.HBox(
            [self._size, self._runs_on, self._start, self._stop, self._chip],
            layout=widgets.Layout(align_items="center"),
        )
        super().__init__([row, self._detail])
        self.add_class("tplab-pool")
        self._show(State.CLOSED)

    @property
    def num_ranks(self) -> int:
        """World size chosen in the chip; it counts from the next start."""
        return int(self._size.value)

    @num_ranks.setter
    def num_ranks(self, value: int) -> None:
        check_count("num_ranks", value, least=1, most=MAX_LOCAL_RANKS)
        with self._quietly():
            self._size.options = [(f"{n} rank{'s' * (n > 1)}", n) for n in sorted({*_SIZES, value})]
            self._size.value = value
        self._offer()

    @property
    def choice(self) -> Choice:
        """What is chosen in the chip: the backend and its devices, for so many ranks. It counts from the next start."""
        return next(each for each in self._choices if each.backend == self._runs_on.value)

    def _offer(self) -> None:
        """Offer what the machine has for the chosen number of ranks, and keep the backend that was chosen."""
        if self._settling:
            return
        before = self._runs_on.value
        self._choices = choices(self.num_ranks)
        with self._quietly():
            self._runs_on.options = [(each.label, each.backend) for each in self._choices]
            if before is not None:
                self._runs_on.value = before
        self._tell()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        self._settling = True
        try:
            yield
        finally:
            self._settling = False

    def on_choice(self, callback: Callable[[Choice], None]) -> None:
        """Call ``callback(choice)`` now, and whenever something else is chosen in the chip."""
        self._told.append(callback)
        callback(self.choice)

    def on_launch(self, callback: Callable[[Cluster], None]) -> None:
        """Call ``callback(cluster)`` now, if there is one, and with every cluster that the pool makes later."""
        self._launched.append(callback)
        if self._cluster is not None:
            callback(self._cluster)

    def on_state(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` whenever the ranks begin or end something, on the cluster's own thread; it must be
        quick."""
        self._watched.append(callback)

    def queue(self, run: Run[Any], title: str) -> None:
        """Remember who has the ranks, or waits for them; ``title`` is how others are told of it."""
        self._queued = [(each, name) for each, name in self._queued if not each.done()] + [(run, title)]

    def ahead_of(self, run: Run[Any] | None) -> str:
        """Title of what has the ranks while ``run`` waits (None: one that is queued next); empty if none of those that
        were queued."""
        ahead = takewhile(lambda each: each[0] is not run, self._queued)
        return next((title for each, title in ahead if not each.done()), "")

    def _tell(self) -> None:
        if self._settling:
            return
        for callback in self._told:
            callback(self.choice)

    @property
    def cluster(self) -> Cluster:
        """The running cluster; starts one as chosen if there is none, without waiting for it."""
        cluster, chosen = self._cluster, (self.num_ranks, self.choice.backend)
        if cluster is None or cluster.closed or (cluster.num_ranks, cluster.backend) != chosen:
            self._launch()
        assert self._cluster is not None
        return self._cluster

    def resized(self, n: int) -> Cluster:
        """A cluster of ``n`` ranks: the first ones of the pool. Where it has fewer, it is started anew with ``n``,
        which its chip then shows."""
        if check_count("n", n, least=1, most=MAX_LOCAL_RANKS) > self.num_ranks:
            self.num_ranks = n
        return self.cluster.resized(n)

    @property
    def badge(self) -> str:
        """The badge of the cluster's numbers; starts one, and waits for it, if there is none."""
        return self.cluster.badge

    def still(self) -> Sequence[Part]:
        """What the chip was set to. Not the state of the ranks: they end with the kernel."""
        return [
            html.heading(f"The pool: {self.choice}"),
            html.quiet("Ranks end with their kernel. Run ▸ Run All Cells starts fresh ones and brings panels back."),
        ]

    def start(self) -> "Pool":
        """Start fresh ranks as chosen and wait until they are ready."""
        self._launch()
        assert self._cluster is not None
        self._cluster.start()
        return self

    def stop(self) -> None:
        """End the ranks."""
        if self._cluster is not None:
            self._cluster.close()

    def close(self) -> None:
        """End the ranks and take the widget off the page."""
        self.stop()
        super().close()

    def _launch(self) -> None:
        self.stop()
        self._cluster = Cluster(self.num_ranks, self.choice.backend, idle_minutes=self._idle_minutes)
        # The cluster's thread must not keep the pool alive, or a dropped pool would never end its ranks.
        me = weakref.ref(self)

        def on_state(state: State) -> None:
            pool = me()
            if pool is not None:
                pool._show(state)

        self._cluster.watch(on_state)
        for callback in self._launched:
            callback(self._cluster)

    def _show(self, state: State) -> None:
        words, colour = _STATE_WORDS[state]
        text = [html.pill(words, colour)]
        cluster = self._cluster
        self._stop.disabled = state is State.CLOSED
        self._start.description = "Start" if state is State.CLOSED else "Restart"
        if cluster is not None and state in (State.READY, State.RUNNING):
            provenance = cluster.provenance
            text.append(html.pill(provenance.badge, style.badge_colour(provenance.badge)))
            launch = cluster.launches[-1]
            phases = launch[last_rank(launch)]
            parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items() if seconds >= _SHOWN_S)
            pids = ", ".join(map(str, cluster.pids))
            shared = " Ranks share a GPU: NCCL is real, its speed is not that of a machine." * provenance.shares_gpus
            crowded = (
                f" {cluster.num_ranks} ranks share {provenance.num_cores} cores, and take turns."
                if provenance.backend == "gloo" and cluster.num_ranks > provenance.num_cores
                else ""
            )
            facts = [
                f"Ready in {sum(phases.values()):.1f} s ({parts})",
                provenance.device,
                provenance.link,
                f"process ids {pids}",
            ]
            self._detail.value = html.quiet(f"{' · '.join(facts)}.{shared}{crowded}")
        elif state is State.DOWN and cluster is not None and cluster.why_down:
            text = [html.pill("● down", colour)]
            self._detail.value = html.ribbon(cluster.why_down[0].upper() + cluster.why_down[1:])
        elif state is State.CLOSED:
            self._detail.value = html.quiet("No processes. Start, or press Run in a panel.")
        self._chip.value = "&nbsp;&nbsp;".join(text)
        for callback in self._watched:
            callback()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        with suppress(ClusterError):
            _ = self.cluster  # shown means wanted: the ranks start while the reader reads
        return super()._repr_mimebundle_(**kwargs)
