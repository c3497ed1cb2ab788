"""How ranks are called in what people read: with their host, where there are several."""

from collections import Counter
from collections.abc import Sequence

_NAMED_EACH = 8  # ranks; of more, those that follow one another are named by the first and the last


def of_all(rank: int, num_ranks: int, hosts: Sequence[str] = ()) -> str:
    """``rank 2 of 4``, or ``rank 2 of 4 on host beta``."""
    return f"rank {rank} of {num_ranks}" + (f" on host {hosts[rank]}" if hosts else "")


def several(ranks: Sequence[int], hosts: Sequence[str] = ()) -> str:
    """``rank 1``, ``ranks 0, 2``, or ``ranks 0 (host alpha), 2 (host beta)``; of many, ``ranks 0 to 14``."""
    runs: list[list[int]] = []
    for rank in ranks:
        last = runs[-1][-1] if runs and len(ranks) > _NAMED_EACH else -2
        if rank == last + 1 and (not hosts or hosts[rank] == hosts[last]):
            runs[-1].append(rank)
        else:
            runs.append([rank])
    named = (f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    if hosts:
        named = (f"{name} (host {hosts[run[0]]})" for name, run in zip(named, runs, strict=True))
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(named)}"


def label(rank: int, hosts: Sequence[str] = ()) -> str:
    """``[rank 2]``, or ``[rank 2 · beta]``: what stands before its lines."""
    return f"[rank {rank} · {hosts[rank]}]" if hosts else f"[rank {rank}]"


def capital(text: str) -> str:
    """With a capital letter in front, and names in it as they are."""
    return text[:1].upper() + text[1:]


def spread(hosts: Sequence[str]) -> str:
    """``3 ranks on 2 hosts: alpha 2, beta 1``; empty for ranks of one host."""
    ranks = Counter(hosts)
    if len(ranks) < 2:
        return ""
    return f"{len(hosts)} ranks on {len(ranks)} hosts: {', '.join(f'{host} {each}' for host, each in ranks.items())}"
