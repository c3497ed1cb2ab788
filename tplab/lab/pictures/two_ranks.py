"""Two ranks talking: processes as boxes, numbers that fly between them, and a button that kills one.

What is drawn is one dictionary, the scene, made here from what the cluster says (states, exits, reports) and sent
whole, so that no part of the picture can be of another moment than the rest. The browser moves the numbers and makes
up nothing. Without a pool it plays a recording: scenes of a real run, each with its time.
"""

import json
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.resources import files
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import traitlets

from tplab.checks import check_count
from tplab.cluster import Cluster, ClusterClosed, ClusterError, Report, Run, RunStopped, State
from tplab.cluster.hello import contribution, talk
from tplab.cluster.naming import several as named
from tplab.cluster.wire import describe_exit
from tplab.lab.panels import html
from tplab.lab.pictures.picture import Picture
from tplab.measure import samples_of
from tplab.shown import number

if TYPE_CHECKING:
    from tplab.lab.panels.pool import Pool

Scene = dict[str, Any]

_RECORDING: Final = "two_ranks.json"
_TIMES_KEPT = 1000
_ANSWER_S = 20.0  # a flight takes a second; where ranks are stopped or share a core with others, some more


class TwoRanks(Picture):
    """Boxes for the ranks of a pool; Run, Stop and Kill. ``TwoRanks()`` plays what was recorded.

    ``run()``, ``stop()`` and ``kill(rank)`` are what the buttons do. Each flight of numbers is a run of its own on the
    ranks, about a second long, so that other cells and panels get their turn in between, however long this one goes on.
    """

    module = "two_ranks"
    caption = "Ranks that talk: an all-reduce between real processes"

    scene = traitlets.Dict().tag(sync=True)
    """What is drawn: ``phase``, ``status``, ``busy``, ``stopping``, ``library``, ``badge``, ``flight`` (number of the
    last flight), ``count`` of all-reduces and their ``median_us``, ``card`` (a fault) and ``ranks``."""
    until_stop = traitlets.Bool(True).tag(sync=True)
    """Whether the Run button goes on until Stop."""
    live = traitlets.Bool(False).tag(sync=True)
    """Whether there are ranks behind it."""
    recording = traitlets.List().tag(sync=True)
    """Pairs of seconds and scene; empty where it is live."""

    def __init__(self, pool: "Pool | None" = None) -> None:
        super().__init__(live=pool is not None, **({} if pool is not None else _recorded()))
        self._pool = pool
        self._lock = threading.RLock()  # never held while the cluster is asked for something that its thread must do
        self._launch = 0  # which of the pool's clusters this is about
        self._cluster: Callable[[], Cluster | None] = lambda: None
        self._run: Run[dict[str, Any]] | None = None
        self._flights_left = 0.0
        self._bursts: dict[int, list[Report]] = {}  # of this flight
        self._us: deque[float] = deque(maxlen=_TIMES_KEPT)
        self._killed_at: dict[int, float] = {}
        self._fault: BaseException | None = None
        self._idle = threading.Event()
        self._idle.set()
        if pool is None:
            return
        self.scene = {
            "phase": "none",
            "status": "",
            "library": "",
            "badge": "",
            "flight": 0,
            "count": 0,
            "median_us": None,
            "card": None,
            "ranks": _boxes(pool.num_ranks, "none"),
        }
        self._tell()
        pool.on_launch(self._follow)
        self.on_msg(self._pressed)

    def still_state(self) -> Mapping[str, Any]:
        """What was recorded: its own processes end with the kernel."""
        return self.state() if self._pool is None else {"until_stop": self.until_stop, "live": False, **_recorded()}

    def state(self) -> dict[str, Any]:
        """What a page of its own is given: of live ranks the moment, for it could not go on."""
        moment = {"live": False, "recording": [(0.0, self.scene)]} if self.live else {}
        return super().state() | moment

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        if self._pool is not None:
            with suppress(ClusterError):
                _ = self._pool.cluster  # shown means wanted: the ranks start while the reader reads
        return super()._repr_mimebundle_(**kwargs)

    # What the buttons do.

    def run(self, flights: int = 1) -> list[dict[str, Any]]:
        """Press Run for so many flights, and wait; one that goes on until Stop is stopped first.

        Returns what each rank told last (``had``, ``got``, ``correct``, ``device``), in rank order. Raises what the
        card shows.
        """
        check_count("flights", flights, least=1)
        try:
            while not self._begin(flights):
                self.stop()
                self._idle.wait()
            self._idle.wait()
        except KeyboardInterrupt:
            self.stop()
            raise
        if self._fault is not None:
            raise self._fault
        assert self._run is not None
        return self._run.result()

    def stop(self) -> None:
        """Press Stop: this flight is the last. Pressed again, or where the ranks are at something else: at once."""
        with self._lock:
            run, soft = self._run, self._flights_left > 0
            self._flights_left = 0
        if run is not None and not (soft and run.running()):
            run.stop()
        self._tell()

    def kill(self, rank: int) -> None:
        """Press Kill: SIGKILL to the process of one rank. Where there is none, nothing happens."""
        cluster = self._cluster()
        if cluster is not None:
            check_count("rank", rank, least=0, most=cluster.num_ranks - 1)
            with self._lock:
                self._killed_at.setdefault(rank, time.monotonic())
            cluster.kill_rank(rank)

    def _pressed(self, _: Any, content: dict[str, Any], __: Any) -> None:
        match content:
            case {"press": "run"}:
                self._begin(float("inf") if self.until_stop else 1)
            case {"press": "stop"}:
                self.stop()
            case {"press": "kill", "rank": rank}:
                self.kill(rank)

    def _begin(self, flights: float) -> bool:
        """Start, unless it is running."""
        assert self._pool is not None, "a recording has no ranks: TwoRanks(pool)"
        with self._lock:
            if not self._idle.is_set():
                return False
            self._idle.clear()
            self._flights_left, self._fault, self._run = flights, None, None
            self._us.clear()
            self._tell(card=None, count=0, median_us=None)
        try:
            self._fly(self._pool.cluster)
        except Exception as error:
            self._over(error)
        return True

    def _fly(self, cluster: Cluster) -> None:
        """Hand the next flight to the ranks."""
        with self._lock:
            self._bursts = {}
        self._run = run = cluster.submit(talk, timeout=_ANSWER_S, on_report=self._on_report)
        self._tell()
        run.add_done_callback(self._landed)

    # What the cluster says, on its own thread.

    def _follow(self, cluster: Cluster) -> None:
        """The pool has made a cluster: from now on this is about its ranks."""
        with self._lock:
            self._launch += 1
            launch, self._cluster = self._launch, weakref.ref(cluster)
            self._killed_at = {}
            self._tell(library=cluster.backend, ranks=self._fresh(cluster, "none"))
        me = weakref.ref(self)  # the cluster's thread keeps neither the picture nor its pool

        def on_state(state: State) -> None:
            if (picture := me()) is not None and picture._launch == launch:
                picture._on_state(state)

        def on_exit(rank: int, exit_code: int | None) -> None:
            if (picture := me()) is not None and picture._launch == launch:
                picture._on_exit(rank, exit_code)

        cluster.watch(on_state, on_exit)

    def _on_state(self, state: State) -> None:
        cluster = self._cluster()
        if cluster is None:
            return
        with self._lock:
            ranks = self.scene["ranks"]
            dead = [rank["index"] for rank in ranks if rank["state"] == "dead"]
            match state:
                case State.STARTING:
                    self._killed_at = {}
                    self._tell(card=None)  # it was of the ranks before
                    ranks = self._fresh(cluster, "starting")
                case State.READY | State.RUNNING:
                    doing = "ready" if state is State.READY else "running"
                    old = ranks if ranks[0]["pid"] == cluster.pids[0] else self._fresh(cluster, doing)
                    told = {"state": doing, "device": _device(cluster)}
                    ranks = [box | told | {"pid": pid} for box, pid in zip(old, cluster.pids, strict=True)]
                    self._tell(badge=cluster.badge)
                case State.DOWN if dead:
                    ranks = [box if box["index"] in dead else box | {"state": "ended"} for box in ranks]
                case State.DOWN | State.CLOSED:
                    ranks = self._fresh(cluster, "none")
            self._tell(phase=state.value, ranks=ranks)

    def _fresh(self, cluster: Cluster, state: str) -> list[dict[str, Any]]:
        """Boxes of other processes than before, with what was held by those that they replace."""
        old, new = self.scene["ranks"], _boxes(cluster.num_ranks, state)
        if len(old) != len(new):
            return new
        last = [box["last"] if box["got"] is None else box["got"] for box in old]
        return [box | {"last": value} for box, value in zip(new, last, strict=True)]

    def _on_exit(self, rank: int, exit_code: int | None) -> None:
        now = time.monotonic()
        with self._lock:
            pressed = self._killed_at.get(rank)
            ranks = [box | {"state": "dead"} if box["index"] == rank else box for box in self.scene["ranks"]]
            if any(box["state"] == "dead" for box in self.scene["ranks"]):
                self._tell(ranks=ranks)  # the card is of the first
                return
            others = [box["index"] for box in ranks if box["index"] != rank]
            card = {
                "title": f"Rank {rank} {describe_exit(exit_code)}.",
                "noticed_ms": None if pressed is None else (now - pressed) * 1e3,
                "text": _what_follows(others),
                "details": "",
            }
            self._tell(ranks=ranks, card=card)

    def _on_report(self, report: Report) -> None:
        with self._lock:
            fields = report.fields
            shown = {name: fields[name] for name in ("had", "got", "correct")}
            ranks = [box | shown if box["index"] == report.rank else box for box in self.scene["ranks"]]
            burst = self._bursts.setdefault(fields["burst"], [])
            burst.append(report)
            if len(burst) < len(ranks):
                self.scene = self.scene | {"ranks": ranks}  # not all have told: nothing flies yet
                return
            slowest = samples_of(burst, len(ranks))["all-reduce"].slowest_us.tolist()
            self._us.extend(slowest)
            self._tell(
                ranks=ranks,
                flight=self.scene["flight"] + (fields["burst"] == 0),
                count=self.scene["count"] + len(slowest),
                median_us=median(self._us),
            )

    def _landed(self, run: Any) -> None:
        """A flight is over: the next one, or the end."""
        error, cluster = run.exception(), self._cluster()
        with self._lock:
            self._flights_left = max(0.0, self._flights_left - 1)
        if error is not None or not self._flights_left or cluster is None:
            self._over(error)
        else:
            self._fly(cluster)

    def _over(self, error: BaseException | None) -> None:
        with self._lock:
            self._fault = error
            self._flights_left = 0
            card = self.scene["card"]
            if error is not None and not isinstance(error, RunStopped | ClusterClosed):
                what, cure = html.explain(error)
                card = (card or {"title": what, "text": cure, "noticed_ms": None}) | {"details": str(error)}
            self._idle.set()
            self._tell(card=card)

    def _tell(self, **changes: Any) -> None:
        """Show the scene with ``changes``, and the sentence and the buttons that go with it."""
        with self._lock:
            scene = self.scene | changes
            busy = not self._idle.is_set()
            scene["busy"], scene["stopping"] = busy, busy and not self._flights_left
            # While it runs, or between two flights; or else somebody else has the ranks.
            ours = scene["phase"] != State.RUNNING.value or (self._run is not None and self._run.running())
            self.scene = scene | {"status": _sentence(scene, ours=ours)}


def _recorded() -> dict[str, Any]:
    recording = json.loads(files(__package__).joinpath(_RECORDING).read_text("utf-8"))
    return {"recording": recording, "scene": recording[-1][1]}


def _boxes(num_ranks: int, state: str) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "pid": None,
            "device": "",
            "state": state,
            "had": contribution(index),
            "got": None,
            "last": None,
            "correct": None,
        }
        for index in range(num_ranks)
    ]


def _device(cluster: Cluster) -> str:
    if cluster.backend == "gloo":
        return "CPU"
    return "its own GPU" if cluster.own_gpus else "a GPU, shared"


def _what_follows(others: list[int]) -> str:
    if not others:
        return "It was the only one. Press Run: a fresh one starts."
    are = "is" if len(others) == 1 else "are"
    return (
        f"{named(others).capitalize()} cannot all-reduce without it and {are} ended, too. Press Run: fresh ranks start."
    )


def _sentence(scene: Scene, *, ours: bool) -> str:
    """What is going on, in words."""
    n, phase = len(scene["ranks"]), scene["phase"]
    ranks = {1: "The rank", 2: "Both ranks"}.get(n, f"All {n} ranks")
    if scene["card"] is not None and not scene["busy"]:
        return ""  # the card says it
    if phase == State.STARTING.value:
        return f"Starting {n} process{'es' * (n > 1)} …"
    if scene["busy"]:
        if not ours:
            return "Waiting for what runs on these ranks."
        return "Stopping after this one …" if scene["stopping"] else f"{ranks} all-reduce; every result is checked."
    if phase == State.READY.value:
        total = sum(box["had"] for box in scene["ranks"])
        if scene["count"]:
            since = "" if scene["ranks"][0]["got"] is not None else " These processes are new since."
            return f"Done: {scene['count']:,} all-reduces, {number(total)} on every rank after each.{since}"
        return f"{ranks} {'is' if n == 1 else 'are'} up and wait{'s' * (n == 1)}. Press Run."
    if phase == State.RUNNING.value:
        return f"{ranks} {'is' if n == 1 else 'are'} at work for another cell."
    return f"No processes. Press Run: {n} rank{'s' * (n > 1)} start{'s' * (n == 1)} by themselves."
