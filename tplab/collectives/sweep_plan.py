"""What a sweep measures: its points, in the order in which they are measured, and what is refused. No torch.

A module of its own, because the notebook kernel, which plans, and the ranks, which measure, share it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tplab.checks import ArgumentError, check_all_of, check_count, check_one_of

ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "int32": 4}
MODES = ("eager", "graph")
_MOST_BYTES = 1 << 40
"""Most bytes of a message on the command line: beyond the memory of any rank."""
PUSHED = ("pushed-one-shot", "pushed-two-shot", "pushed-int8", "pushed-fp8")
"""Our kernels (``peer_memory``), which write into the memory of other GPUs; the last two are quantised."""
ON_SYMMETRIC_MEMORY = ("symmetric-one-shot", "symmetric-two-shot", *PUSHED)
"""torch's CUDA kernels over memory that GPUs share, and ours; they need one GPU per rank."""
INEXACT = ("int8-two-shot", "pushed-int8", "pushed-fp8")
"""Algorithms that change the numbers: not in a race with those that do not."""
MOST_ONE_SHOT_BYTES = 256 << 10
"""The largest message of ``pushed-one-shot``: beyond, two-shot is faster everywhere, and sweeps have no such rows."""
OF_MESSAGES = ("ring", "two-shot", "one-shot", "recursive-doubling")
"""Ours, exact, of point-to-point messages."""
_SYMMETRIC_BYTES = 128
"""Bytes that sizes are a multiple of for those kernels: they move 16 bytes of every rank's part, and a host has up to
8 GPUs."""
ALGORITHMS = (
    *("library", "ring", "two-shot", "one-shot", "recursive-doubling", "int8-two-shot"),
    *ON_SYMMETRIC_MEMORY,
)
"""Names of all-reduces: the backend's own choice, ours of messages, and kernels over symmetric memory."""
_DTYPES_OF = {
    "int8-two-shot": ("float32", "bfloat16", "float16", "float64"),
    **dict.fromkeys(ON_SYMMETRIC_MEMORY, ("bfloat16", "float32")),
    **dict.fromkeys(PUSHED, ("bfloat16", "float32", "float16")),
}
"""Dtypes of the algorithms that do not take all."""
DEFAULT_SIZES = tuple(1 << power for power in range(10, 27))
"""Sizes in bytes: 1 KiB to 64 MiB in powers of two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One row of a sweep: what to time, and how often."""

    algorithm: str
    """One of ``ALGORITHMS``."""
    dtype: str
    """Name of a torch dtype."""
    num_elements: int
    """Elements of the message."""
    iterations: int
    """Number of samples."""
    mode: str
    """``eager`` or ``graph``."""

    @property
    def nbytes(self) -> int:
        """Size of the message in bytes."""
        return self.num_elements * ITEMSIZES[self.dtype]


def plan_sweep(
    *,
    sizes: Sequence[int] = DEFAULT_SIZES,
    dtypes: Sequence[str] = ("float32",),
    algorithms: Sequence[str] = ("library",),
    mode: str = "eager",
    iterations: int | None = None,
    backend: str = "gloo",
    shares_gpus: bool = False,
) -> list[Point]:
    """The rows of a sweep, in the order they are measured. Raises ``ValueError`` naming a bad argument.

    Args:
        sizes: message sizes in bytes, rising. ``pushed-one-shot`` has rows up to 256 KiB only.
        dtypes: names of torch dtypes.
        algorithms: ``library`` (the backend's own all-reduce) or one of ours.
        mode: ``eager`` or, on GPUs, ``graph``: the all-reduce captured in a CUDA graph.
        iterations: samples of every point; by default 50 for small messages down to 7 for large ones.
        backend: of the cluster it is for.
        shares_gpus: whether ranks share GPUs; the default ``iterations`` is then a quarter, as each call waits for the
            GPU to switch between processes.
    """
    check_all_of("dtypes", dtypes, ITEMSIZES)
    check_all_of("algorithms", algorithms, ALGORITHMS)
    check_one_of("mode", mode, MODES)
    if mode == "graph" and backend != "nccl":
        raise ArgumentError("mode", mode, f"must be eager on the {backend} backend: CUDA graphs need nccl")
    captured = ("library", *ON_SYMMETRIC_MEMORY)
    if mode == "graph" and not set(algorithms) <= set(captured):
        raise ArgumentError("mode", mode, f"must be eager for algorithms other than {', '.join(captured)}")
    shared = sorted(set(algorithms) & set(ON_SYMMETRIC_MEMORY))
    if shared and (backend != "nccl" or shares_gpus):
        where = "ranks that share a GPU" if backend == "nccl" else f"the {backend} backend"
        raise ArgumentError("algorithms", shared, f"need a GPU per rank, and this cluster has {where}")
    for algorithm in algorithms:
        known = _DTYPES_OF.get(algorithm, dtypes)
        if unknown := sorted(set(dtypes) - set(known)):
            raise ArgumentError("dtypes", unknown, f"must be out of {', '.join(known)} for {algorithm}")
    if iterations is not None:
        check_count("iterations", iterations, least=1)
    sizes = [check_count("sizes", size, least=1) for size in sizes]
    largest = max(ITEMSIZES[dtype] for dtype in dtypes)
    for size in sizes:
        if size % largest:
            raise ArgumentError("sizes", size, f"must be multiples of the largest dtype's {largest} bytes")
        if shared and size % _SYMMETRIC_BYTES:
            raise ArgumentError("sizes", size, f"must be multiples of {_SYMMETRIC_BYTES} bytes for {', '.join(shared)}")
    if not sizes or any(after <= before for before, after in pairwise(sizes)):
        raise ArgumentError("sizes", sizes, "must rise, each larger than the one before, and be one at least")
    if set(algorithms) == {PUSHED[0]} and sizes[0] > MOST_ONE_SHOT_BYTES:
        raise ArgumentError("sizes", sizes, f"must begin below {MOST_ONE_SHOT_BYTES >> 10} KiB for {PUSHED[0]} alone")
    return [
        Point(
            algorithm=algorithm,
            dtype=dtype,
            num_elements=size // ITEMSIZES[dtype],
            iterations=iterations or max(7, default_iterations(size) // (4 if shares_gpus else 1)),
            mode=mode,
        )
        for algorithm in algorithms
        for dtype in dtypes
        for size in sizes
        if algorithm != PUSHED[0] or size <= MOST_ONE_SHOT_BYTES
    ]


def plan_crossover(
    *,
    backend: str,
    shares_gpus: bool,
    peer_memory: bool = True,
    sizes: Sequence[int] | None = None,
    dtype: str = "bfloat16",
    iterations: int | None = None,
) -> list[Point]:
    """The sweep that shows which exact all-reduce is the fastest for which size, as far as a cluster has them.

    On GPUs of their own in CUDA graphs, as engines decode: the library's beside those on symmetric memory. Elsewhere,
    also where GPUs do not reach each other's memory, eagerly: the library's beside ours of point-to-point messages.

    Args:
        backend, shares_gpus, peer_memory: of the cluster it is for.
        sizes: bytes of the messages; by default up to 64 MiB on GPUs of their own and up to 4 MiB elsewhere.
        dtype, iterations: as for :func:`plan_sweep`, whose ``ValueError`` it raises.
    """
    own_gpus = backend == "nccl" and not shares_gpus
    symmetric = own_gpus and peer_memory
    exact = [name for name in ON_SYMMETRIC_MEMORY if name not in INEXACT]
    return plan_sweep(
        sizes=sizes or (DEFAULT_SIZES if own_gpus else DEFAULT_SIZES[:13]),
        dtypes=(dtype,),
        algorithms=("library", *(exact if symmetric else OF_MESSAGES)),
        mode="graph" if symmetric else "eager",
        iterations=iterations,
        backend=backend,
        shares_gpus=shares_gpus,
    )


def parse_bytes(argument: str, text: str) -> int:
    """``512B``, ``64KiB``, ``2MiB`` or a plain number of bytes. Raises ``ValueError`` naming ``argument``."""
    match = re.fullmatch(r"\s*(\d{1,15})\s*(|B|KiB|MiB|GiB)\s*", text)
    size = 0 if match is None else int(match[1]) << {"": 0, "B": 0, "KiB": 10, "MiB": 20, "GiB": 30}[match[2]]
    if not 0 < size <= _MOST_BYTES:
        rule = f"must be a positive size such as 512B, 64KiB, 2MiB or 1GiB, and at most {_MOST_BYTES >> 30}GiB"
        raise ArgumentError(argument, text, rule)
    return size


def default_iterations(nbytes: int) -> int:
    """50 samples up to 64 KiB, then fewer, down to 7 at 8 MiB and above: a sweep to 64 MiB takes seconds."""
    return max(7, min(50, int(50 * ((1 << 16) / nbytes) ** 0.4)))
