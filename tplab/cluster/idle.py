"""Ranks that nobody has used for a while are ended, to leave their memory to others.

No timer and no thread: the cluster's own thread waits no longer than until the moment when it would be time. A cell
that runs in the notebook counts as use, also where it runs nothing on ranks at the moment: it may be about to.
"""

import math
import os
import sys
import time
from typing import Any

from tplab.checks import ArgumentError, check_number

IDLE_MINUTES = "TPLAB_IDLE_MINUTES"
"""The variable of the environment that says after how many minutes the ranks of a pool are ended; 0: never."""
ON_A_HUB_MINUTES = 30.0
_MOST_MINUTES = 10**6


def check_minutes(minutes: float | None) -> float | None:
    """``minutes``; None for 0 and None, which both mean never. Raises ``ArgumentError`` for what is no number."""
    if minutes is None:
        return None
    return check_number("idle_minutes", minutes, least=0, most=_MOST_MINUTES) or None


def default_minutes() -> float | None:
    """After how many idle minutes ranks end here: what the environment says, else 30 under JupyterHub, else never."""
    said = os.environ.get(IDLE_MINUTES, "").strip()
    if not said:
        return ON_A_HUB_MINUTES if "JUPYTERHUB_USER" in os.environ else None
    try:
        return check_minutes(float(said))
    except ValueError:
        rule = f"must be a number of minutes from 0, for never, to {_MOST_MINUTES:,}"
        raise ArgumentError(IDLE_MINUTES, said, rule) from None


class IdleClock:
    """When the ranks of one cluster will have been idle for long enough."""

    def __init__(self, minutes: float | None) -> None:
        self._seconds = None if minutes is None else minutes * 60
        self.due = math.inf
        """On the monotonic clock; never, while it does not run."""
        if self._seconds is not None:
            _CELLS.watch()

    def begin(self) -> None:
        """The ranks are idle from now on."""
        self.due = math.inf if self._seconds is None else time.monotonic() + self._seconds

    def stop(self) -> None:
        """They are not, or there are none."""
        self.due = math.inf

    def is_over(self) -> bool:
        """Whether it is time. A cell that runs, or ended meanwhile, puts it off."""
        if self._seconds is None or time.monotonic() < self.due:
            return False
        self.due = (time.monotonic() if _CELLS.running else _CELLS.ended) + self._seconds
        return time.monotonic() >= self.due

    @property
    def why_down(self) -> str:
        """What is said while there are no ranks."""
        gone = "what cells left on them (rank.store, variables of %%ranks) is gone"
        return f"{self._what}. The next run starts them again; {gone}."

    @property
    def notice(self) -> str:
        """What the next run says."""
        return f"tplab: {self._what}; these are fresh ones, and rank.store is empty."

    @property
    def _what(self) -> str:
        minutes = (self._seconds or 0) / 60
        noun = "minute" if minutes == 1 else "minutes"
        return f"the ranks were stopped after {minutes:.3g} idle {noun}, to leave memory to others"


class _Cells:
    """Whether a cell of the notebook runs, and when the last one ended."""

    def __init__(self) -> None:
        self.running = False
        self.ended = -math.inf
        self._shell: Any = None

    def watch(self) -> None:
        """Look from now on, in a notebook; elsewhere there are no cells."""
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is None or shell is self._shell:
            return
        self._shell = shell
        self.running = True  # the one that this is called in
        shell.events.register("pre_run_cell", self._begin)
        shell.events.register("post_run_cell", self._end)

    def _begin(self, *_: object) -> None:
        self.running = True

    def _end(self, *_: object) -> None:
        self.running, self.ended = False, time.monotonic()


_CELLS = _Cells()
