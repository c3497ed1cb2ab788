"""How many bytes a collective moves: what the call is handed, and what each rank must then send and receive.

The two differ, and a "communication volume" that does not say which one it is can be off by a factor of n-1: an
all-reduce of 64 MiB over 8 ranks sends 112 MiB from each in a ring, 448 MiB in one shot. Numbers in, numbers out.

Letters: S bytes of the *full* tensor, that is the all-reduce's or broadcast's buffer, the all-gather's output, the
reduce-scatter's input, the point-to-point message; n ranks. One rank alone sends nothing.

Why not count on the wire and leave it at that: the lab does count, and this is what it compares the count with.
"""

import operator
from dataclasses import dataclass

from tplab.checks import check_count, check_one_of

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "all-reduce": ("ring", "tree", "recursive-doubling", "one-shot", "two-shot"),
    "all-gather": ("ring", "direct"),
    "reduce-scatter": ("ring", "direct", "gloo"),
    "broadcast": ("ring", "tree", "flat"),
    "point-to-point": ("direct",),
}
"""Collective -> names of its algorithms; the docstring of ``sent_bytes`` says what each does."""

COLLECTIVES = tuple(ALGORITHMS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What one call puts on the wire. Bytes are fractional where S does not split evenly over the ranks."""

    sent_mean: float
    """Bytes sent by a rank, averaged over all of them. What is sent is received, so the mean received is the same."""
    sent_max: float
    """Bytes sent by the rank that sends most."""
    received_max: float
    """Bytes received by the rank that receives most."""
    steps: int
    """Messages that must follow one another on the longest path, when each is sent whole (not cut for pipelining)."""


def payload_bytes(collective: str, input_bytes: int, n: int) -> int:
    """S, from what one rank hands to the call: ``input_bytes``, except for an all-gather, whose output is n inputs."""
    check_one_of("collective", collective, COLLECTIVES)
    n = check_count("n", n, least=1)
    input_bytes = check_count("input_bytes", input_bytes)
    return input_bytes * n if collective == "all-gather" else input_bytes


def sent_bytes(collective: str, algorithm: str, nbytes: int, n: int) -> Traffic:
    """What one call on a tensor of S = ``nbytes`` makes the ranks send.

    | collective     | algorithm          | mean per rank | max per rank        | steps             |
    |----------------|--------------------|---------------|---------------------|-------------------|
    | all-reduce     | ring               | 2(n-1)/n·S    | the same            | 2(n-1)            |
    |                | tree (double)      | 2(n-1)/n·S    | 2S (n=3: 1.5S, 2: S)| 2·ceil(log2 n)    |
    |                | recursive-doubling | k·S           | the same            | k, if n = 2^k     |
    |                | ... otherwise      | (2r + k·2^k)S/n | (k+1)·S           | k+2               |
    |                | one-shot           | (n-1)·S       | the same            | 1                 |
    |                | two-shot           | 2(n-1)/n·S    | the same            | 2                 |
    | all-gather     | ring               | (n-1)/n·S     | the same            | n-1               |
    |                | direct             | (n-1)/n·S     | the same            | 1                 |
    | reduce-scatter | ring               | (n-1)/n·S     | the same            | n-1               |
    |                | direct             | (n-1)/n·S     | the same            | 1                 |
    |                | gloo               | 2(n-1)/n·S    | the same            | 2(n-1)            |
    | broadcast      | ring (a chain)     | (n-1)/n·S     | S                   | n-1               |
    |                | tree (binomial)    | (n-1)/n·S     | ceil(log2 n)·S      | ceil(log2 n)      |
    |                | flat               | (n-1)/n·S     | (n-1)·S             | 1                 |
    | point-to-point | direct             | S/n           | S                   | 1                 |

    - Double tree: two trees over all ranks carry half of S each, up and down; who is inside one is a leaf of the other.
    - Recursive doubling of n = 2^k + r ranks, 0 < r < 2^k: first r ranks fold their tensor into a partner's, 2^k ranks
      go on, at last the partners send the result back. Two extra steps, 2r extra messages of S.
    - One-shot: every rank sends all of S to every other. Two-shot: a direct reduce-scatter, then a direct all-gather.
    - gloo's own reduce-scatter is an all-reduce whose result is cut: at n=4, 1.5·S instead of 0.75·S.
    - Point-to-point: one of the n ranks sends to another.

    Sources: Thakur, Rabenseifner and Gropp 2005 (recursive doubling, the fold, binomial broadcast); Patarasuk and Yuan
    2009 (ring); Sanders, Speck and Träff 2009 (two trees). The rest is counting.

    Known to be wrong: NCCL's tree is a double binary tree over *nodes* and a chain inside each; protocols that send a
    flag with the data (NCCL's LL) double the bytes; a switch that reduces or copies (NVLS, SHARP) lowers them to about
    S per rank and direction, below what ``lower_bound_bytes`` allows ranks that do it alone.
    """
    check_algorithm(collective, algorithm)
    n = check_count("n", n, least=1)
    nbytes = check_count("nbytes", nbytes)
    if n == 1:
        return Traffic(sent_mean=0.0, sent_max=0.0, received_max=0.0, steps=0)
    once, twice = (n - 1) * nbytes / n, 2 * (n - 1) * nbytes / n
    rounds = log2_ceil(n)
    match collective, algorithm:
        case ("all-reduce", "ring") | ("reduce-scatter", "gloo"):
            return _even(twice, 2 * (n - 1))
        case "all-reduce", "tree":
            busiest = 2 * nbytes if n > 3 else n * nbytes / 2
            return Traffic(sent_mean=twice, sent_max=busiest, received_max=busiest, steps=2 * rounds)
        case "all-reduce", "recursive-doubling":
            return _recursive_doubling(nbytes, n)
        case "all-reduce", "one-shot":
            return _even((n - 1) * nbytes, 1)
        case "all-reduce", "two-shot":
            return _even(twice, 2)
        case (("all-gather" | "reduce-scatter"), "ring"):
            return _even(once, n - 1)
        case (("all-gather" | "reduce-scatter"), "direct"):
            return _even(once, 1)
        case "broadcast", "ring":
            return Traffic(sent_mean=once, sent_max=nbytes, received_max=nbytes, steps=n - 1)
        case "broadcast", "tree":
            return Traffic(sent_mean=once, sent_max=rounds * nbytes, received_max=nbytes, steps=rounds)
        case "broadcast", "flat":
            return Traffic(sent_mean=once, sent_max=(n - 1) * nbytes, received_max=nbytes, steps=1)
        case "point-to-point", "direct":
            return Traffic(sent_mean=nbytes / n, sent_max=nbytes, received_max=nbytes, steps=1)
    raise AssertionError(f"{algorithm} {collective} is listed but not counted")


def _even(each: float, steps: int) -> Traffic:
    return Traffic(sent_mean=each, sent_max=each, received_max=each, steps=steps)


def _recursive_doubling(nbytes: int, n: int) -> Traffic:
    rounds = n.bit_length() - 1
    inside = 1 << rounds
    folded = n - inside
    if not folded:
        return _even(rounds * nbytes, rounds)
    total = (2 * folded + inside * rounds) * nbytes
    busiest = (rounds + 1) * nbytes
    return Traffic(sent_mean=total / n, sent_max=busiest, received_max=busiest, steps=rounds + 2)


def lower_bound_bytes(collective: str, nbytes: int, n: int) -> float:
    """What the ranks must send on average, whatever the algorithm, if each sum is made on a rank.

    All-reduce: 2(n-1)/n·S (Patarasuk and Yuan 2009, after Rabenseifner). All-gather, reduce-scatter and broadcast:
    (n-1)/n·S, since n-1 ranks lack a share, or all of it. Point-to-point: S/n. With a switch that reduces
    (NVLS, SHARP) ranks send less.
    """
    check_one_of("collective", collective, COLLECTIVES)
    n = check_count("n", n, least=1)
    nbytes = check_count("nbytes", nbytes)
    if n == 1:
        return 0.0
    messages = {"all-reduce": 2 * (n - 1), "point-to-point": 1}.get(collective, n - 1)
    return messages * nbytes / n


def chunk_lengths(num_elements: int, n: int) -> list[int]:
    """Elements per chunk, as ``torch.tensor_split`` cuts: the first ``num_elements % n`` chunks are one longer."""
    n = check_count("n", n, least=1)
    quotient, remainder = divmod(check_count("num_elements", num_elements), n)
    return [quotient + (index < remainder) for index in range(n)]


def ring_sent_bytes(rank: int, num_elements: int, itemsize: int, n: int) -> int:
    """Exactly what ``rank`` sends in the lab's ring all-reduce, also where n does not divide the elements.

    Reduce-scatter: in step s = 0 .. n-2 rank r sends chunk (r - s) mod n; all-gather: chunk (r + 1 - s) mod n. Over the
    n-1 steps that is every chunk but (r + 1) mod n, then every chunk but (r + 2) mod n.
    """
    lengths = chunk_lengths(num_elements, n)
    rank = check_count("rank", rank, most=len(lengths) - 1)
    kept = lengths[(rank + 1) % n] + lengths[(rank + 2) % n]
    return (2 * operator.index(num_elements) - kept) * check_count("itemsize", itemsize, least=1)


def int8_sent_bytes(rank: int, num_elements: int, n: int, scale_group: int) -> int:
    """Exactly what ``rank`` sends in the lab's int8 two-shot all-reduce: everybody else's chunk to its owner, then the
    own chunk to everybody else; a chunk is a byte per element and 4 for every begun ``scale_group`` of them.

    Over bfloat16's two bytes that is ``(1 + 4/g) / 2`` where the chunks divide: 0.53 at g = 64.
    """
    scale_group = check_count("scale_group", scale_group, least=1)
    messages = [length + 4 * -(-length // scale_group) for length in chunk_lengths(num_elements, n)]
    rank = check_count("rank", rank, most=len(messages) - 1)
    return sum(messages) - messages[rank] + (n - 1) * messages[rank]


def tp_forward_bytes(
    batch: int, seq: int, hidden: int, num_layers: int, itemsize: int = 2, all_reduces_per_layer: int = 2
) -> int:
    """Payload of one tensor-parallel forward pass: ``all_reduces_per_layer · L`` all-reduces of ``b·s·h·itemsize``.

    Two per layer for a sequential dense block, one where attention and MLP run in parallel (parallel residual); with
    sequence parallelism each becomes a reduce-scatter and an all-gather of the same S. Prefill has s = prompt length,
    a decode step s = 1. What goes over the wire: ``sent_bytes`` of it, for it is linear in S.

    Args:
        batch, seq: b and s: sequences, and tokens of each in this pass.
        hidden: h, features of the residual stream.
        num_layers: L.
        itemsize: bytes of an element.
        all_reduces_per_layer: 2, or 1 with a parallel residual.

    Known to be wrong: leaves out the embedding's all-reduce and the gathering of logits.
    """
    message = _message_bytes(batch, seq, hidden, itemsize)
    num_layers = check_count("num_layers", num_layers)
    return check_count("all_reduces_per_layer", all_reduces_per_layer) * num_layers * message


def pp_forward_bytes(
    batch: int, seq: int, hidden: int, num_stages: int, itemsize: int = 2, tensors_per_boundary: int = 1
) -> int:
    """Payload of one pipeline-parallel forward pass: p stages have p-1 boundaries, each passes ``b·s·h·itemsize``.

    Engines that pass hidden state and residual apart have two ``tensors_per_boundary``. How many micro-batches the
    batch is cut into does not matter; v chunks per stage (interleaved) make p·v stages here.

    Args:
        batch, seq: b and s: sequences, and tokens of each in this pass.
        hidden: h, features of the residual stream.
        num_stages: p, or p·v with chunks.
        itemsize: bytes of an element.
        tensors_per_boundary: 2 where the residual is passed apart.

    Known to be wrong: with TP inside a stage, engines send either a slice per TP rank or the whole from each.
    """
    message = _message_bytes(batch, seq, hidden, itemsize)
    boundaries = check_count("num_stages", num_stages, least=1) - 1
    return check_count("tensors_per_boundary", tensors_per_boundary) * boundaries * message


def tp_over_pp(num_layers: int, num_stages: int, all_reduces_per_layer: int = 2) -> float:
    """Payload of TP over payload of PP for the same model and tokens: 2L/(p-1), whatever b, s and h."""
    boundaries = check_count("num_stages", num_stages, least=2) - 1
    per_layer = check_count("all_reduces_per_layer", all_reduces_per_layer)
    return per_layer * check_count("num_layers", num_layers) / boundaries


def _message_bytes(batch: int, seq: int, hidden: int, itemsize: int) -> int:
    tokens = check_count("batch", batch) * check_count("seq", seq)
    return tokens * check_count("hidden", hidden) * check_count("itemsize", itemsize, least=1)


def log2_ceil(n: int) -> int:
    """Rounds of doubling until n ranks are reached: ceil(log2 n), exactly."""
    return (n - 1).bit_length()


def check_algorithm(collective: str, algorithm: str) -> None:
    check_one_of("collective", collective, COLLECTIVES)
    check_one_of(f"algorithm of {collective}", algorithm, ALGORITHMS[collective])
