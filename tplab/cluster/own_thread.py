"""A thread that owns something: callers post closures to it, so nothing it owns needs a lock.

Two notebook threads, a widget and a garbage collector can use one cluster at once. The thread is long-lived also
because Linux's parent-death signal follows the thread that started the process.
"""

import logging
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from tplab.cluster.errors import ClusterError

logger = logging.getLogger(__name__)

# After how many failures of its own without a success between them the thread gives up.
_FAILURES_IN_A_ROW = 5
_CLOSE_WAIT_S = 10.0


class OwnThread(ABC):
    """A thread that repeats ``_step`` until it is closed. What goes wrong in a step does not end it."""

    def __init__(self, name: str) -> None:
        self._posted: deque[Callable[[], None]] = deque()
        self._owner_pid = os.getpid()
        self._door = threading.RLock()  # between a post and the closing, so that nothing slips in behind the last look
        self._closed = False
        self.thread = threading.Thread(target=self._loop, name=name, daemon=True)

    # From any thread.

    def check_owner(self) -> None:
        """Raise ``ClusterError`` in a forked copy of the kernel, which has no thread that would ever answer."""
        if os.getpid() != self._owner_pid:
            raise ClusterError(
                f"this cluster belongs to process {self._owner_pid}, and this is a copy of it that was forked "
                f"(process {os.getpid()}): make a Cluster of its own here, or use it where it was made"
            )

    def _post(self, action: Callable[[], None]) -> bool:
        """Have the thread do something. False when it is closed."""
        self.check_owner()
        with self._door:
            if self._closed:
                return False
            self._posted.append(action)
        self._wake()
        return True

    def _join(self) -> None:
        """Wait for the end, unless this is the thread itself. An interrupt ends the waiting; the closing goes on."""
        if threading.current_thread() is not self.thread and self.thread.ident is not None:
            self.thread.join(_CLOSE_WAIT_S)

    @abstractmethod
    def _wake(self) -> None:
        """Make ``_step`` return soon."""

    # On the thread.

    @abstractmethod
    def _step(self) -> None:
        """Wait for something to happen and deal with it, and with what was posted."""

    @abstractmethod
    def _recover(self, error: BaseException) -> None:
        """Go on after a step has failed: too little memory, say, or a bug. Whoever waited for it learns of it."""

    @abstractmethod
    def _end(self, error: BaseException | None) -> None:
        """Free everything; ``error``: why, where it was not asked to."""

    def _do_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    def _close_door(self) -> None:
        with self._door:
            self._closed = True

    def _loop(self) -> None:
        failures = 0
        reason: BaseException | None = None
        try:
            while not self._closed:
                try:
                    self._step()
                    failures = 0
                except BaseException as error:
                    failures += 1
                    if failures > _FAILURES_IN_A_ROW:
                        raise
                    logger.warning("the cluster's own thread failed and goes on", exc_info=error)
                    self._recover(error)
        except BaseException as error:
            reason = error
            raise
        finally:
            self._close_door()
            self._end(reason)

    def _guard(self, callback: Callable[..., None], *args: object, **options: object) -> None:
        """Call out; what a caller's callback or a broken stdout raises must not end this thread."""
        try:
            callback(*args, **options)
        except BaseException as error:  # sys.exit() in a callback is no reason to end the cluster
            # Its text: a record that holds the error holds the frames of this thread, and with them a run's values.
            logger.warning("a callback of the cluster failed: %s", repr(error))
