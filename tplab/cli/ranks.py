"""The ranks that a command measures on."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tplab.checks import ArgumentError

if TYPE_CHECKING:
    from tplab.cluster import Cluster


def add_cluster(parser: "argparse.ArgumentParser") -> None:
    """Add ``--cluster`` to a command that measures on ranks."""
    parser.add_argument(
        "--cluster",
        metavar="PROFILE-OR-FILE",
        help="start the ranks on the hosts of an ipyparallel cluster: a profile's name, or its "
        "ipcontroller-client.json or cluster-ID.json",
    )


@contextmanager
def ranks(n: int | None, backend: str, cluster: str | None = None) -> "Iterator[Cluster | None]":
    """A cluster of ``n`` ranks of this command's own, on the hosts of an ipyparallel ``cluster`` if one is given; or of
    those that ``torchrun`` started, if it started this process. Then it is None but on rank 0, when all is done, and
    there is nothing to write."""
    from tplab.cluster import Cluster
    from tplab.cluster.launched import launched
    from tplab.cluster.naming import spread
    from tplab.cluster.torchrun import under_torchrun

    if not under_torchrun():
        with Cluster(n, backend) if cluster is None else _on_hosts(n, backend, cluster) as made:
            yield made
        return
    if cluster is not None:
        raise ArgumentError("cluster", cluster, "must be left out under torchrun, which has started the ranks")
    with launched(backend) as given:
        if given is not None and (where := spread(given.hosts)):
            print(where, flush=True)
        yield given


def _on_hosts(n: int | None, backend: str, cluster: str) -> "Cluster":
    from tplab.cluster import Cluster
    from tplab.cluster.hosts.connect import where
    from tplab.cluster.naming import spread

    made = Cluster(n, backend, engine="ipyparallel", **where(cluster))  # type: ignore[arg-type]
    print(spread(made.hosts) or f"All ranks are on host {made.hosts[0]}.", flush=True)
    return made
