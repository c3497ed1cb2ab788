"""``build_schedule``: a table by its name."""

from collections.abc import Callable

from tplab.checks import check_count, check_one_of
from tplab.pipeline import inference, training
from tplab.pipeline.schedule import MicroBatch, Schedule

TRAINING = ("gpipe", "1f1b", "interleaved", "zb-h1")
INFERENCE = ("forward-only", "chunked-prefill", "decode-ring", "prefill-decode")
SCHEDULES = TRAINING + INFERENCE
"""Names that :func:`build_schedule` knows."""

_ONE_CHUNK: dict[str, Callable[[int, int, int], training.Row]] = {
    "gpipe": training.gpipe,
    "1f1b": training.one_f_one_b,
    "zb-h1": training.zb_h1,
}


def build_schedule(
    name: str,
    num_stages: int,
    num_micro_batches: int,
    num_chunks: int = 1,
    *,
    num_in_flight: int | None = None,
    num_prefill_chunks: int | None = None,
) -> Schedule:
    """The table called ``name``, computations only.

    ===================  ==========================================================================================
    ``gpipe``            all forwards, then all backwards
    ``1f1b``             one forward, one backward
    ``interleaved``      1F1B over ``num_chunks`` chunks per rank
    ``zb-h1``            1F1B with the weights' gradients put off to where ranks would idle
    ``forward-only``     forwards of all micro-batches
    ``chunked-prefill``  the same of one prompt's chunks
    ``decode-ring``      decoding steps of ``num_in_flight`` batches in turn, the sampled token fed back
    ``prefill-decode``   the same with a prompt prefilled among them in ``num_prefill_chunks``
    ===================  ==========================================================================================

    Args:
        num_stages: p, the number of ranks.
        num_micro_batches: m, all ids in the table: a decoding step of a batch is one.
        num_chunks: v, stages per rank; above 1 for ``interleaved`` only.
        num_in_flight: k of the decoding ones, by default p.
        num_prefill_chunks: of ``prefill-decode``, by default p.

    Raises:
        ValueError: an unknown name; counts below 1; m that ``interleaved`` cannot cut into rounds of p; arguments that
            the schedule has no use for.
    """
    check_one_of("name", name, SCHEDULES)
    p = check_count("num_stages", num_stages, least=1)
    m = check_count("num_micro_batches", num_micro_batches, least=1)
    v = check_count("num_chunks", num_chunks, least=1)
    if v > 1 and name != "interleaved":
        raise ValueError(f"num_chunks must be 1 for {name}, got {v}: only interleaved has several chunks per rank")
    for argument, value, names in (
        ("num_in_flight", num_in_flight, INFERENCE[2:]),
        ("num_prefill_chunks", num_prefill_chunks, INFERENCE[3:]),
    ):
        if value is not None and name not in names:
            raise ValueError(f"{argument} is for {' and '.join(names)}, not for {name}; got {value}")
    k = check_count("num_in_flight", p if num_in_flight is None else num_in_flight, least=1)
    chunks = check_count("num_prefill_chunks", p if num_prefill_chunks is None else num_prefill_chunks, least=1)

    micro_batches: tuple[MicroBatch, ...] = ()
    if name in _ONE_CHUNK:
        rows = tuple(_ONE_CHUNK[name](p, m, r) for r in range(p))
    elif name == "interleaved":
        _check_rounds(p, m)
        rows = tuple(training.interleaved(p, m, v, r) for r in range(p))
    else:
        rows = inference.forward_rows(p, m)
        micro_batches = {
            "forward-only": lambda: inference.prefill(m),
            "chunked-prefill": lambda: inference.chunked_prefill(m),
            "decode-ring": lambda: inference.decode_ring(m, k),
            "prefill-decode": lambda: inference.prefill_decode(m, k, chunks),
        }[name]()
    return Schedule(name=name, num_stages=p, num_micro_batches=m, num_chunks=v, ranks=rows, micro_batches=micro_batches)


def _check_rounds(p: int, m: int) -> None:
    if m < p:
        raise ValueError(
            f"interleaved sends micro-batches round in groups of as many as there are ranks (num_stages): {m} are "
            f"fewer than {p}; take num_micro_batches of at least {p}, or 1f1b"
        )
    if m % p:
        raise ValueError(
            f"interleaved needs whole groups of as many micro-batches as there are ranks (num_stages): {m} is not a "
            f"multiple of {p}; take num_micro_batches of {m - m % p} or {m - m % p + p}"
        )
