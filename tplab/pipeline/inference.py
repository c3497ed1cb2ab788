"""Inference pipelines: forward only, so no rank ever chooses between two kinds of work; micro-batches run in id order.

What differs is what a micro-batch needs besides the stage before:

- *forward-only*: nothing. Micro-batches of a prefill, or of an encoder.
- *chunked prefill*: one prompt in chunks; a chunk attends to those before it, whose keys and values must be in the
  cache of the same stage. Order alone sees to that. Later chunks take longer, for their prefix grows: that is in the
  costs.
- *decode ring*: k batches of sequences in flight, each step of each batch a micro-batch with an id of its own: step j
  of batch b is j·k + b. A step takes in the tokens that the last stage sampled in the step before: the back edge. The
  ring is full when k is large enough that stage 0 never waits for it.
- *prefill and decode mixed*: k decoding batches, and a prompt that is prefilled among them, a chunk after each of their
  steps, and then decodes with them.

Why ids of their own, and not a round beside the micro-batch: the text form of torch has no room for a round, and with
ids a table of decoding is a table like any other, for every pass over tables.

Source of the prefill chunks among decodes: Agrawal and others 2023 (Sarathi); there a chunk and decodes share one
micro-batch, which is a matter of costs, not of order.
"""

from tplab.pipeline.schedule import Action, MicroBatch, Op

Rows = tuple[tuple[Action, ...], ...]


def forward_rows(p: int, m: int) -> Rows:
    """Every rank: the forwards of all micro-batches by id."""
    return tuple(tuple(Action(r, Op.F, i) for i in range(m)) for r in range(p))


def prefill(m: int) -> tuple[MicroBatch, ...]:
    """Micro-batches that need nothing of each other."""
    return (MicroBatch("prefill"),) * m


def chunked_prefill(m: int) -> tuple[MicroBatch, ...]:
    """The m chunks of one prompt."""
    return tuple(MicroBatch("prefill", kv_from=i - 1 if i else None) for i in range(m))


def decode_ring(m: int, in_flight: int) -> tuple[MicroBatch, ...]:
    """m steps, ``in_flight`` = k batches taking turns. The first step of a batch has its token from elsewhere."""
    first, later = min(m, in_flight), range(in_flight, m)
    return (MicroBatch("decode"),) * first + tuple(
        MicroBatch("decode", kv_from=i - in_flight, token_from=i - in_flight) for i in later
    )


def prefill_decode(m: int, in_flight: int, num_prefill_chunks: int) -> tuple[MicroBatch, ...]:
    """Rounds of ``in_flight`` decoding steps and, after them, the prompt's next chunk; when it has none left it decodes
    as one more batch, from the token that its last chunk sampled."""
    micro_batches: list[MicroBatch] = []
    last: list[int | None] = [None] * (in_flight + 1)  # latest micro-batch of each decoding batch, and of the prompt
    for i in range(m):
        turn, batch = divmod(i, in_flight + 1)
        before = last[batch]
        if batch == in_flight and turn < num_prefill_chunks:
            micro_batches.append(MicroBatch("prefill", kv_from=before))
        else:
            micro_batches.append(MicroBatch("decode", kv_from=before, token_from=before))
        last[batch] = i
    return tuple(micro_batches)
