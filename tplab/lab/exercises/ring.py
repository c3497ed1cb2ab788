"""Notebook 02: a ring all-reduce from isend and irecv.

Checked besides the sums: that nothing but messages was used, whom they went to, how long the longest was and how many
bytes a rank sent. Two ranks cannot tell a ring from passing whole tensors or from one-shot: 2(n-1)/n = n-1 = 1. So the
checker wants three at least, and is meant for four.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tplab.checks import ArgumentError
from tplab.cluster import Cluster
from tplab.lab.exercises.on_ranks import as_tensor, described
from tplab.lab.exercises.trial import Seen, Trial, check_cluster
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker
from tplab.shown import counted

if TYPE_CHECKING:
    import torch

    from tplab.cluster import Rank

_CASES = ((4096, "float32"), (16, "int64"), (1003, "float64"), (514, "bfloat16"), (3, "float32"), (1, "int64"))
"""Elements and dtype. The first divides by four: what is said of chunks is said of it."""
_LARGEST = {"float32": 1 << 23, "int64": 1 << 40, "float64": 1 << 50, "bfloat16": 1 << 7}
"""Addends are whole numbers so large that fewer bits could not carry them, and so small that every sum is exact."""
_ON_HANG = (
    "In a ring all ranks send and receive at the same time: start both (isend, irecv, or one batch_isend_irecv) before "
    "you wait for either, and let every rank go through the same n-1 steps twice."
)


@checker("02-ring")
def check_ring(
    cluster: Cluster, my_ring_all_reduce: "Callable[[Rank, torch.Tensor], torch.Tensor]", *, timeout: float = 20.0
) -> Verdict:
    """``my_ring_all_reduce(rank, x)``: x (N,), another on every rank; it must return their sum, (N,), on every rank.

    From messages to the two neighbours alone, none longer than a chunk, with 2(n-1)/n · S bytes sent by every rank.
    Where n does not divide N, a rank may send 2(n-1) chunks of the longest length, and the longest may be n-1 elements
    longer than N // n: padding, ``torch.tensor_split`` and a long last chunk are all right. So are a ring to the left,
    several messages per chunk, and changing x or not.

    Args:
        cluster: four ranks; three or more are enough to tell.
        my_ring_all_reduce: the learner's.
        timeout: seconds that a call may take.
    """
    check_cluster(cluster)
    if cluster.num_ranks < 3:
        raise ArgumentError(
            "cluster",
            cluster.num_ranks,
            "must have four ranks (with two, whole tensors cost no more than a ring): make some, Cluster(4, 'gloo')",
        )
    trial = Trial(cluster, my_ring_all_reduce, timeout=timeout, on_hang=_ON_HANG)
    for length, dtype in _CASES:
        context = f"With {counted(length, 'element')} of {dtype}"
        seen = trial.run(_prepare, _judge, length, dtype, context=context)
        itemsize = seen[0].value["itemsize"]
        if fault := _fault(seen, length, itemsize):
            raise NotYetError(f"{context}: {fault}")
    n = cluster.num_ranks
    return Verdict(
        True,
        f"the sum on all {n} ranks for {len(_CASES)} lengths, from messages between neighbours; each rank sends "
        f"2(n-1)/n = {2 * (n - 1) / n:.4g} times its tensor.",
    )


def _prepare(rank: "Rank", seed: int, length: int, dtype: str) -> tuple[Any, ...]:
    return (_addend(rank.index, rank.world_size, seed, length, dtype).to(rank.device),)


def _addend(index: int, n: int, seed: int, length: int, dtype: str) -> "torch.Tensor":
    import torch

    generator = torch.Generator().manual_seed(seed + index)
    most = _LARGEST[dtype] // n
    return torch.randint(-most, most + 1, (length,), generator=generator).to(getattr(torch, dtype))


def _judge(rank: "Rank", seed: int, got: Any, length: int, dtype: str) -> dict[str, Any]:
    import torch

    n = rank.world_size
    addends = torch.stack([_addend(index, n, seed, length, dtype) for index in range(n)])
    want = addends.sum(0)
    told: dict[str, Any] = {"itemsize": want.element_size()}
    got = as_tensor(got)
    if not isinstance(got, torch.Tensor) or got.shape != want.shape or got.dtype != want.dtype:
        return told | {"returned": described(got), "wanted": described(want)}
    right = got.detach().cpu() == want
    parts = torch.arange(length).tensor_split(n)
    told["right_chunks"] = [chunk for chunk, part in enumerate(parts) if bool(right[part].all())]
    if not bool(right.all()):
        first = int((~right).nonzero()[0])
        chunk = next(chunk for chunk, part in enumerate(parts) if first in part)
        wrong = parts[chunk][~right[parts[chunk]]]
        told |= {
            "num_wrong": int((~right).sum()),
            "first": first,
            "chunk": chunk,
            "want": want[first].item(),
            "got": got[first].item(),
            "made_of": _made_of(got.detach().cpu()[wrong], addends[:, wrong]) if length > n else None,
            "holds": _chunk_in_place(got.detach().cpu(), want, chunk, parts),
        }
    return told


def _chunk_in_place(
    got: "torch.Tensor", want: "torch.Tensor", chunk: int, parts: "Sequence[torch.Tensor]"
) -> int | None:
    """Which chunk of the sum is in the place of ``chunk``; None for none of them."""
    import torch

    same = [each for each, part in enumerate(parts) if len(part) and torch.equal(got[parts[chunk]], want[part])]
    return same[0] if same else None


def _made_of(got: "torch.Tensor", addends: "torch.Tensor") -> list[int] | None:
    """How often each rank's addend is in these elements; None where they are no such sum."""
    from itertools import product

    import torch

    if len(addends) > 6 or addends.dtype == torch.bfloat16:
        return None
    whole, numbers = got.long(), addends.long()
    for times in product(range(4), repeat=len(addends)):
        if torch.equal((torch.tensor(times).unsqueeze(1) * numbers).sum(0), whole):
            return list(times)
    return None


def _fault(seen: Sequence[Seen], length: int, itemsize: int) -> str | None:
    """What is wrong with a try, and where to look; None if nothing is."""
    n = len(seen)
    for each in seen:
        if "returned" in each.value:
            return (
                f"rank {each.rank} must return the sum, {each.value['wanted']}; it returned {each.value['returned']}."
            )
    others = sorted({call.kind for each in seen for call in each.calls} - {"send", "recv", "barrier"})
    if others:
        return (
            f"a ring is made of messages between two ranks, dist.isend and dist.irecv; counted besides: "
            f"{', '.join(others)}."
        )
    for each in seen:
        to = sorted({call.peer for call in each.calls if call.kind == "send" and call.peer is not None})
        strangers = [peer for peer in to if peer not in ((each.rank + 1) % n, (each.rank - 1) % n)]
        if strangers:
            hint = (
                " A message to everybody is the one-shot all-reduce, which sends (n-1) · S." if len(to) == n - 1 else ""
            )
            return (
                f"rank {each.rank} sent to rank{'s' * (len(to) > 1)} {_and(to)}; in a ring of {n} it has two "
                f"neighbours, ranks {(each.rank - 1) % n} and {(each.rank + 1) % n}.{hint}"
            )
    for each in seen:
        if "num_wrong" in each.value:
            return _wrong_sum(each, seen, length, itemsize)
    return _too_many_bytes(seen, length, itemsize)


def _too_many_bytes(seen: Sequence[Seen], length: int, itemsize: int) -> str | None:
    n, whole = len(seen), length * itemsize
    sent = [[call.num_bytes for call in each.calls if call.kind == "send"] for each in seen]
    longest = max(max(mine, default=0) for mine in sent)
    rank = next(rank for rank, mine in enumerate(sent) if max(mine, default=0) == longest)
    if longest > (length // n + n - 1) * itemsize:
        what = "the whole tensor" if longest >= whole else "more than a chunk"
        return (
            f"right, but a message of rank {rank} has {longest:,} bytes, {what}; a chunk of the {whole:,} has "
            f"{-(-length // n) * itemsize:,}. A ring passes one of {n} chunks at each step: passing all of it costs "
            f"(n-1) · S instead of 2(n-1)/n · S."
        )
    most = 2 * (n - 1) * -(-length // n) * itemsize
    for rank, mine in enumerate(sent):
        if sum(mine) > most:
            return (
                f"right, but rank {rank} sends {sum(mine):,} bytes in {len(mine)} messages; 2(n-1) = {2 * (n - 1)} "
                f"chunks are {most:,}. Which chunk goes out twice to the same neighbour?"
            )
    total = sum(map(sum, sent))
    if total < 2 * (n - 1) * whole:
        return (
            f"right, but all ranks together send {total:,} bytes, and no sum made by the ranks themselves takes fewer "
            f"than 2(n-1) · S = {2 * (n - 1) * whole:,}: the rest went where it is not counted. Use isend and irecv."
        )
    return None


def _wrong_sum(one: Seen, seen: Sequence[Seen], length: int, itemsize: int) -> str:
    n, told = len(seen), one.value
    sent = max(each.num_bytes("send") for each in seen)
    if sent == 0:
        return f"rank {one.rank} sent nothing. Cut x into {n} chunks and pass one to the next rank at each step."
    have = [each.value["right_chunks"] for each in seen]
    is_half = length % n == 0 and sent <= (n - 1) * length // n * itemsize  # bytes of a reduce-scatter
    if is_half and all(len(mine) == 1 for mine in have) and len({mine[0] for mine in have}) == n:
        owners = ", ".join(f"rank {rank} chunk {_and(mine)}" for rank, mine in enumerate(have))
        return (
            f"half of a ring: each rank has one chunk of the sum only ({owners}). That is the reduce-scatter; then "
            f"the finished chunks have to go round, n-1 steps more, without adding."
        )
    start, end = _chunk(length, n, told["chunk"])
    said = (
        f"rank {one.rank}: {told['num_wrong']:,} of {length:,} elements are wrong; element {told['first']:,}, in chunk "
        f"{told['chunk']} ({start:,} to {end - 1:,}), is {told['got']}, expected {told['want']}."
    )
    if told["holds"] is not None:
        return f"{said} It is chunk {told['holds']} of the sum: in which order are the chunks put together?"
    times = told["made_of"]
    if times is None:
        return (
            f"{said} In the first n-1 steps add what comes to your own chunk, in the others put it in its place; is a "
            f"chunk sent or changed before what it waits for has come?"
        )
    if not any(times):
        return f"{said} It holds nobody's addend: is what comes read before wait() has returned?"
    parts = [f"of rank {rank}{f' {count} times' * (count > 1)}" for rank, count in enumerate(times) if count]
    return (
        f"{said} It holds the addend{'s' * (len(parts) != 1)} {_and(parts)}; wanted: each of the {n} "
        f"once. Which chunk does a rank send, and to which does it add, in step s?"
    )


def _chunk(length: int, n: int, chunk: int) -> tuple[int, int]:
    from tplab.collectives.volumes import chunk_lengths

    lengths = chunk_lengths(length, n)
    start = sum(lengths[:chunk])
    return start, start + lengths[chunk]


def _and(words: Sequence[object]) -> str:
    texts = [str(word) for word in words]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else ""
