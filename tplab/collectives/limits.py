"""Up to which size an all-reduce goes by which of our kernels, and beyond by the library. Pure, no torch.

Not numbers that stand in the code for a GPU, as engines have them (``engine_thresholds``), where there are measured
ones: a sweep over a cluster's ranks leaves its limits with them, and the next ``generate`` follows those.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tplab.checks import check_count
from tplab.collectives.sweep_plan import MOST_ONE_SHOT_BYTES

_MIB = 1 << 20


def limits_key(num_ranks: int) -> tuple[str, int]:
    """Under which a rank's store holds what a sweep of so many ranks has found."""
    return "tplab.collectives.limits", num_ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The largest messages of the two exact kernels in ``peer_memory``."""

    one_shot_bytes: int
    """Largest message that goes in one step; 0: none does."""
    two_shot_bytes: int
    """Largest message that goes in two steps; larger ones go through the library. 0: none goes in two."""

    @classmethod
    def default(cls, num_ranks: int) -> "Limits":
        """What is taken before anything is measured: one step to 256 KiB (128 on more than four ranks), two to 8 MiB
        (32 on two ranks).

        On two H200 (NVLink, NCCL 2.28.9, 2026-11-28, in graphs) one step was the fastest to 256 KiB, two steps beat
        NCCL to 64 MiB, and beyond was not measured. On more ranks: one step ends where n-1 times the bytes, with a flag
        to each word, take longer than a second step and its two signals, some 4 us, at the 350 GB/s of NVLink; two
        steps end below the 16 MiB up to which torch's two-shot kernel beat NCCL on four H200 (the recorded sweep of
        2026-11-26).

        Known to be wrong: over PCIe, where both should be smaller.
        """
        ranks = check_count("num_ranks", num_ranks, least=1)
        one_shot = MOST_ONE_SHOT_BYTES if ranks <= 4 else MOST_ONE_SHOT_BYTES // 2
        return cls(one_shot_bytes=one_shot, two_shot_bytes=(32 if ranks <= 2 else 8) * _MIB)

    @classmethod
    def measured(cls, times_us: Mapping[str, Mapping[int, float]]) -> "Limits":
        """Limits from times: each kernel goes as far as it is the fastest at every size from where it begins.

        Args:
            times_us: algorithm of the sweep -> bytes -> time. At sizes at which one was not measured it does not win.
        """
        sizes = sorted({size for by_size in times_us.values() for size in by_size})

        def largest(name: str, above: int) -> int:
            found = above
            for size in (size for size in sizes if size > above):
                times = {each: by_size[size] for each, by_size in times_us.items() if size in by_size}
                if name not in times or times[name] > min(times.values()):
                    break
                found = size
            return found

        one_shot = largest("pushed-one-shot", 0)
        return cls(one_shot_bytes=one_shot, two_shot_bytes=largest("pushed-two-shot", one_shot))
