"""The ranks that a command measures on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tplab.cluster import Cluster


@contextmanager
def ranks(n: int, backend: str) -> "Iterator[Cluster | None]":
    """A cluster of ``n`` ranks of this command's own; or of those that ``torchrun`` started, if it started this
    process. Then it is None but on rank 0, when all is done, and there is nothing to write."""
    from tplab.cluster import Cluster
    from tplab.cluster.launched import launched
    from tplab.cluster.naming import spread
    from tplab.cluster.torchrun import under_torchrun

    if not under_torchrun():
        with Cluster(n, backend) as cluster:
            yield cluster
        return
    with launched(backend) as given:
        if given is not None and (where := spread(given.hosts)):
            print(where, flush=True)
        yield given
