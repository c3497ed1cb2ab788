"""What ran during a step, kernel by kernel, cut into the terms that the advisor adds up. Pure.

A profiler gives names and times. Here each kernel gets a term by its name, and every instant of the step one term: that
of the kernel that ran, or ``gaps``. So the terms add up to the step's wall time, whatever overlapped, and what no
pattern knows is in ``other`` with its name.

Where two ran at once, a kernel that computes counts before NCCL's or gloo's: what is left of communication is what
nothing hid. Of any two others the one that began first counts until it ends.

Known to be wrong: names are those of today's libraries (cuBLAS, cuDNN, NCCL, torch's and Triton's of this lab), so a
new one may be in ``other``; a product that is part of attention by matmul and softmax counts among the weights; the
last product of a step is taken for the head's, what follows it for sampling.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

TERMS = (*("weights", "head", "attention", "norms and elementwise", "all-reduce", "hops", "sampling", "other", "gaps"),)
"""Terms of a step: products with weights, the last of them, attention over the cache, everything small between them,
collectives, messages between stages, choosing tokens, what no pattern knows, and time in which nothing ran."""

_COMMUNICATION = ("all-reduce", "hops")
_PATTERNS = (
    ("hops", r"nccl.*(SendRecv|Send|Recv)|^(gloo|c10d|nccl):*(send|recv)"),
    (
        "all-reduce",
        r"nccl|^(gloo|c10d):|one_shot|two_shot|multimem|symm_mem|all_?reduce|all_?gather|reduce_?scatter|"
        r"^add_rms_norm_kernel",  # ours, of the sum over ranks, the residual and the norm in one
    ),
    ("attention", r"flash|fmha|attention|sdpa|_combine_kernel|mha_"),
    (
        "weights",
        r"gemm|gemv|gemvx|cutlass|cublas|nvjet|xmma|splitk|dot_kernel|_gate_up_kernel|_few_kernel|^aten::(linear|mm|addmm|matmul|mv|"
        r"bmm|baddbmm)$|mkldnn",
    ),
    (
        "norms and elementwise",
        r"norm|elementwise|_rope_cache_kernel|rotary|_silu_mul_kernel|silu|catarray|copy|memcpy|memset|fill|"
        r"index|embedding|reduce_kernel|softmax|scatter|gather|arange|scan|sort|topk|distribution|compare|"
        r"^triton_|^aten::",
    ),
)
"""Term -> pattern of names, in the order in which they are tried; small or capital letters."""
_COMPILED = tuple((term, re.compile(pattern, re.I)) for term, pattern in _PATTERNS)
_BESIDE = re.compile(r"nccl|^(gloo|c10d):", re.I)
"""Names of communication that runs beside what computes. Kernels of ours over other GPUs' memory are in line with it:
what begins under them only waits for them."""
_CHOOSES = re.compile(r"argmax|reduce_kernel|softmax|topk|sort|^aten::max", re.I)
"""Names of what chooses a token."""
_LONGEST_NAME = 60


class Kernel(NamedTuple):
    """Something that ran: a GPU's kernel, or an operation of a CPU."""

    name: str
    start_s: float
    end_s: float
    """Seconds of the machine's monotonic clock, or of any other, the same for all of a step."""
    term: str = ""
    """One of ``TERMS`` but ``gaps``; empty before :func:`named` has looked at it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TermTime:
    """One term of a step."""

    term: str
    """One of ``TERMS``."""
    wall_s: float
    """Seconds of the step that are this term's alone; those of all terms are the step."""
    busy_s: float
    """Seconds that its kernels ran, also at the same time as others; 0 for ``gaps``."""
    calls: int
    """Number of its kernels; for ``gaps``, of the gaps."""
    names: tuple[str, ...]
    """Short names of its kernels, those that ran longest first."""


def term_of(name: str) -> str:
    """The term of a kernel by its name alone: never ``head`` or ``sampling``, which its place in the step decides."""
    return next((term for term, pattern in _COMPILED if pattern.search(name)), "other")


def short_name(name: str) -> str:
    """A kernel's name without arguments and outer namespaces: ``cutlass::Kernel2``, ``elementwise_kernel``."""
    bare = re.sub(r"^(void|unsigned int|int|bool) ", "", name.replace("(anonymous namespace)::", ""))
    bare = re.split(r"[<(]", bare, maxsplit=1)[0].removeprefix("at::native::")
    return "::".join(bare.strip().split("::")[-2:])[:_LONGEST_NAME]


def named(
    kernels: Iterable[Kernel], *, is_last_stage: bool, at_work: Sequence[tuple[float, float]] | None = None
) -> list[Kernel]:
    """Kernels of one step in the order in which they began, each with its term.

    Args:
        at_work: when the stage computed, from and to: communication within it is among the ranks that share a layer,
            whatever it consists of, and any other is between stages. None where there is one stage only.
        is_last_stage: whether this rank has the head: then the last product before tokens are chosen is the head's, and
            what comes after it, but communication, is sampling.
    """
    ordered = sorted((kernel._replace(term=term_of(kernel.name)) for kernel in kernels), key=lambda each: each.start_s)
    for place, kernel in enumerate(ordered):
        if kernel.term in _COMMUNICATION:
            own = at_work is None or any(start <= kernel.start_s < end for start, end in at_work)
            ordered[place] = kernel._replace(term="all-reduce" if own else "hops")
    head = _head(ordered) if is_last_stage else None
    if head is None:
        return ordered
    first, last = head
    made = []
    for place, kernel in enumerate(ordered):
        term = kernel.term
        if first <= place <= last:
            term = "head"
        elif place > last and term not in (*_COMMUNICATION, "other"):
            term = "sampling"
        made.append(kernel._replace(term=term))
    return made


def _head(ordered: Sequence[Kernel]) -> tuple[int, int] | None:
    """First and last place of the head's product. A step in a CUDA graph ends some microseconds before the next one
    begins, less than clocks are apart: so its last product may be the next step's first."""
    runs: list[tuple[int, int]] = []
    for place, kernel in enumerate(ordered):
        if kernel.term == "weights":  # a product may be in several kernels
            joined = bool(runs) and runs[-1][1] == place - 1
            runs[-1:] = [(runs[-1][0], place)] if joined else [*runs[-1:], (place, place)]
    if not runs:
        return None
    ends = [first for first, _ in runs[1:]] + [len(ordered)]
    for run, end in reversed(list(zip(runs, ends, strict=True))):
        if any(_CHOOSES.search(kernel.name) for kernel in ordered[run[1] + 1 : end]):
            return run
    return runs[-1]


def times_of(kernels: Sequence[Kernel], start_s: float, end_s: float) -> list[TermTime]:
    """The terms of a step from ``start_s`` to ``end_s``, one of each of ``TERMS`` in order; their ``wall_s`` add up to
    the whole.

    Args:
        kernels: as :func:`named` gives them; parts outside of the step are cut off.

    Raises:
        ValueError: a step that ends before it begins.
    """
    if end_s < start_s:
        raise ValueError(f"a step must end after it begins; got {start_s} and {end_s}")
    inside = [
        kernel._replace(start_s=max(kernel.start_s, start_s), end_s=min(kernel.end_s, end_s))
        for kernel in kernels
        if kernel.end_s > start_s and kernel.start_s < end_s
    ]
    wall = dict.fromkeys(TERMS, 0.0)
    covered: list[tuple[float, float]] = []
    for beside in (False, True):
        for kernel in sorted(inside, key=lambda each: each.start_s):
            if bool(_BESIDE.search(kernel.name)) is beside:
                wall[kernel.term] += _uncovered(covered, kernel.start_s, kernel.end_s)
                covered = _joined(covered, (kernel.start_s, kernel.end_s))
    gaps = _between(covered, start_s, end_s)
    wall["gaps"] = sum(end - start for start, end in gaps)
    busy: dict[str, dict[str, float]] = {term: {} for term in TERMS}
    calls = dict.fromkeys(TERMS, 0) | {"gaps": len(gaps)}
    for kernel in inside:
        name = short_name(kernel.name)
        busy[kernel.term][name] = busy[kernel.term].get(name, 0.0) + kernel.end_s - kernel.start_s
        calls[kernel.term] += 1
    return [
        TermTime(
            term=term,
            wall_s=wall[term],
            busy_s=sum(busy[term].values()),
            calls=calls[term],
            names=tuple(sorted(busy[term], key=lambda name: -busy[term][name])),
        )
        for term in TERMS
    ]


_Spans = list[tuple[float, float]]


def _joined(covered: _Spans, new: tuple[float, float]) -> _Spans:
    """Spans in order, none overlapping another, with one more."""
    made, (start, end) = [], new
    placed = False
    for span in covered:
        if span[1] < start:
            made.append(span)
        elif span[0] > end:
            if not placed:
                made.append((start, end))
                placed = True
            made.append(span)
        else:
            start, end = min(start, span[0]), max(end, span[1])
    return made if placed else [*made, (start, end)]


def _between(covered: _Spans, start: float, end: float) -> _Spans:
    """The parts of (start, end) outside of ``covered``."""
    free, at = [], start
    for begin, until in covered:
        if begin >= end:
            break
        if begin > at:
            free.append((at, begin))
        at = max(at, until)
    return [*free, (at, end)] if at < end else free


def _uncovered(covered: _Spans, start: float, end: float) -> float:
    return sum(until - begin for begin, until in _between(covered, start, end))
