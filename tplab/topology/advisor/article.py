"""The article's advisor (S7, see docs/article.md), with its signature and right answers.

It knows four numbers: how many GPUs, how large they and the model are, how fast the links. So it can say no more than a
rule of thumb; ``advise`` knows the model, the requests and the link of every pair. What the article's code did instead:
an exact fit got a GPU too many, degrees of 3 or 15 that no model's heads divide by, more stages than GPUs, TP 4 over
PCIe, NVLink blamed where the model was merely large, and no word when nothing fits.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tplab.checks import check_count, check_number

if TYPE_CHECKING:
    import pandas as pd

USABLE_FRACTION = 0.7
"""Part of a card's memory that is for weights; cache, activations and workspace take the rest."""
TP_LEAST_GBPS = 300.0
"""Least bandwidth in GB/s over which the article shares layers: NVLink 3 and later, in one direction."""
_EXACT = 1e-9  # 0.7 · 24 is a hair under 16.8: a fit that is exact on paper is one


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    tp: int
    pp: int
    replicas: int
    idle: int

    @property
    def gpus(self) -> int:
        return self.tp * self.pp


class CommunicationTopology:
    """Recommends tensor or pipeline parallelism from the size of the model and the speed of the links."""

    @staticmethod
    def recommend_parallel_strategy(
        num_gpus: int,
        gpu_memory_gb: float,
        model_size_gb: float,
        nvlink_bandwidth_gbps: float = 600,
        pcie_bandwidth_gbps: float = 64,
        *,
        usable_fraction: float = USABLE_FRACTION,
        gpus_per_node: int = 8,
    ) -> dict[str, Any]:
        """A layout that fits, that heads divide by, and that leaves as few GPUs idle as can be.

        With a fast link: TP inside a node, as few stages as possible. With a slow one: stages only, since a boundary
        sends the hidden state once where TP sums it twice in every layer. GPUs beyond one copy of the model hold more
        copies.

        Args:
            num_gpus: in all.
            gpu_memory_gb: of one, in GB.
            model_size_gb: weights, in GB.
            nvlink_bandwidth_gbps, pcie_bandwidth_gbps: GB/s despite the name (the article's); 0 without NVLink. The
                faster of the two is what GPUs of a node use.
            usable_fraction: part of a GPU's memory that weights may take.
            gpus_per_node: TP stays inside a node.

        Returns:
            ``strategy`` (``TP-first`` or ``PP-first``), ``tp_degree`` (a power of two), ``pp_degree``, ``replicas``,
            ``idle_gpus``, ``weights_per_gpu_gb`` and ``reason``.

        Raises:
            ValueError: numbers that cannot be, or a model larger than all GPUs together; says what would fit.
        """
        _check(num_gpus, gpu_memory_gb, model_size_gb, nvlink_bandwidth_gbps, pcie_bandwidth_gbps, gpus_per_node)
        check_number("usable_fraction", usable_fraction, above=0, most=1)
        room = gpu_memory_gb * usable_fraction
        needed = max(1, math.ceil(model_size_gb / room * (1 - _EXACT)))
        if needed > num_gpus:
            raise ValueError(
                f"model_size_gb={model_size_gb:g} does not fit: {num_gpus} GPUs of {gpu_memory_gb:g} GB have "
                f"{num_gpus * room:g} GB for weights ({usable_fraction:.0%}), {model_size_gb - num_gpus * room:.4g} GB "
                f"too few. Use at least {needed} such GPUs, GPUs of at least "
                f"{model_size_gb / num_gpus / usable_fraction:.4g} GB, or weights of fewer bits"
            )
        link = max(nvlink_bandwidth_gbps, pcie_bandwidth_gbps)
        name = "NVLink" if nvlink_bandwidth_gbps >= pcie_bandwidth_gbps else "PCIe"
        fast = link >= TP_LEAST_GBPS
        best = _best(num_gpus, needed, min(gpus_per_node, num_gpus), fast)
        tp_first = fast and (best.tp > 1 or best.pp == 1)
        return {
            "strategy": "TP-first" if tp_first else "PP-first",
            "tp_degree": best.tp,
            "pp_degree": best.pp,
            "replicas": best.replicas,
            "idle_gpus": best.idle,
            "weights_per_gpu_gb": model_size_gb / best.gpus,
            "reason": f"{_size(model_size_gb, room, needed)}; {_why(best, fast, name, link)}{_rest(best)}.",
        }


def claimed_gpus(gpu_memory_gb: float, model_size_gb: float, *, usable_fraction: float = USABLE_FRACTION) -> int:
    """What the article takes for the number of GPUs that a model needs, and with a fast link for the TP degree: the
    quotient of size and room without its fraction, and one more. An exact fit then gets a GPU too many, and no power of
    two comes out but by chance.

    Args:
        gpu_memory_gb: of one, in GB.
        model_size_gb: weights, in GB.
        usable_fraction: part of a GPU's memory that weights may take.
    """
    check_number("gpu_memory_gb", gpu_memory_gb, above=0)
    check_number("model_size_gb", model_size_gb, above=0)
    check_number("usable_fraction", usable_fraction, above=0, most=1)
    return int(model_size_gb / (gpu_memory_gb * usable_fraction)) + 1


def beside_claimed(cases: "Iterable[tuple[int, float, float]]", **options: float) -> "pd.DataFrame":
    """The article's TP degree with a fast link beside what is recommended, and what is wrong with it.

    Args:
        cases: GPUs in all, memory of one in GB, and weights of the model in GB.
        options: for ``recommend_parallel_strategy``.

    Returns:
        A row per case: ``gpus``, ``gpu_gb``, ``model_gb``, ``claimed_tp``, ``wrong`` (in words; empty where nothing is)
        and ``right`` (``TP 4 × PP 1 × 2``, the third number copies; or ``does not fit``).
    """
    import pandas as pd

    rows = []
    for num_gpus, memory, size in cases:
        claimed = claimed_gpus(memory, size)
        needed = max(1, math.ceil(size / (memory * USABLE_FRACTION) * (1 - _EXACT)))
        wrong = []
        if claimed > needed:
            wrong.append(f"{needed} would do")
        if claimed & (claimed - 1):
            wrong.append("no power of two")
        if claimed > num_gpus:
            wrong.append(f"there are {num_gpus}")
        if needed > num_gpus:
            right = "does not fit"
        else:
            made = CommunicationTopology.recommend_parallel_strategy(num_gpus, memory, size, **options)  # type: ignore[arg-type]
            right = f"TP {made['tp_degree']} × PP {made['pp_degree']} × {made['replicas']}"
        rows.append((num_gpus, memory, size, claimed, ", ".join(wrong), right))
    return pd.DataFrame(rows, columns=["gpus", "gpu_gb", "model_gb", "claimed_tp", "wrong", "right"])


def _best(num_gpus: int, needed: int, most_tp: int, fast: bool) -> _Candidate:
    """Fewest idle GPUs; then, with a fast link, fewest stages; then fewest GPUs per copy.

    With a fast link a model that needs several GPUs gets tp of at least 2 wherever that fits.
    """
    degrees = [2**k for k in range(most_tp.bit_length()) if 2**k <= most_tp] if fast else [1]
    candidates = []
    for tp in degrees:
        for pp in range(-(-needed // tp), num_gpus // tp + 1):
            replicas = num_gpus // (tp * pp)
            candidates.append(_Candidate(tp=tp, pp=pp, replicas=replicas, idle=num_gpus - tp * pp * replicas))
    if needed > 1 and any(each.tp > 1 for each in candidates):
        candidates = [each for each in candidates if each.tp > 1]
    return min(candidates, key=lambda each: (each.idle, each.pp if fast else 0, each.gpus))


def _size(model: float, room: float, needed: int) -> str:
    if needed == 1:
        return f"{model:g} GB of weights fit one GPU ({room:g} GB for them)"
    return f"{model:g} GB of weights need {needed} GPUs of {room:g} GB for them"


def _why(best: _Candidate, fast: bool, name: str, link: float) -> str:
    if best.gpus == 1:
        return "nothing needs to be split"
    if not fast:
        return (
            f"{name} at {link:g} GB/s is below the {TP_LEAST_GBPS:g} GB/s that two all-reduces per layer want, so "
            f"stages: a boundary sends the hidden state once"
        )
    if best.pp == 1:
        return f"{name} at {link:g} GB/s carries two all-reduces per layer, so TP {best.tp}"
    if best.tp == 1:
        return f"no power of two of tp uses the GPUs, whatever {name} at {link:g} GB/s could carry, so stages"
    return (
        f"{name} at {link:g} GB/s carries TP {best.tp}, and the model is too large for that alone, so {best.pp} stages"
    )


def _rest(best: _Candidate) -> str:
    copies = f"; {best.replicas} copies share the requests" if best.replicas > 1 else ""
    idle = f"; {best.idle} GPU{'s' * (best.idle > 1)} left over" if best.idle else ""
    return copies + idle


def _check(num_gpus: int, memory: float, model: float, nvlink: float, pcie: float, gpus_per_node: int) -> None:
    for name, count in (("num_gpus", num_gpus), ("gpus_per_node", gpus_per_node)):
        check_count(name, count, least=1)
    for name, size in (("gpu_memory_gb", memory), ("model_size_gb", model)):
        check_number(name, size, above=0)
    for name, speed in (("nvlink_bandwidth_gbps", nvlink), ("pcie_bandwidth_gbps", pcie)):
        check_number(name, speed, least=0)
