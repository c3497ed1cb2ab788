"""The order of work on one rank, for training: GPipe, 1F1B, interleaved 1F1B and ZB-H1.

Each function gives the computations of one rank; what other ranks must have done before is not in the order, and comes
out when the table is simulated or run.

Why not take torch's tables: those of its 1F1B and GPipe begin the last rank at F1 and fail torch's own validator
(2.11 to 2.15). Its interleaved one is right, and ours is held against it.

Letters: p ranks, m micro-batches, v chunks per rank, r this rank; F, B, I, W as in ``tplab.pipeline.schedule``.
"""

from tplab.pipeline.schedule import Action, Op

Row = tuple[Action, ...]


def gpipe(p: int, m: int, r: int) -> Row:
    """All forwards, then all backwards, the last micro-batch first.

    Peak: m micro-batches. Source: Huang and others 2019 (GPipe).
    """
    del p
    return (*(Action(r, Op.F, i) for i in range(m)), *(Action(r, Op.B, i) for i in reversed(range(m))))


def one_f_one_b(p: int, m: int, r: int) -> Row:
    """Warm up with ``min(m, p - 1 - r)`` forwards, then one forward and one backward in turn, then the backwards left.

    Peak: ``min(m, p - r)`` micro-batches. Source: Narayanan and others 2019 (PipeDream), as 1F1B with a flush in 2021
    (Megatron-LM), section 2.2.
    """
    return _one_f_one_b(m, r, warm_up=min(m, p - 1 - r))


def _one_f_one_b(m: int, r: int, warm_up: int) -> Row:
    row = [Action(r, Op.F, i) for i in range(warm_up)]
    for i in range(m):
        if warm_up + i < m:
            row.append(Action(r, Op.F, warm_up + i))
        row.append(Action(r, Op.B, i))
    return tuple(row)


def interleaved(p: int, m: int, v: int, r: int) -> Row:
    """1F1B over v chunks per rank: rank r holds stages r, p + r, 2p + r and so on.

    Forwards go in rounds of p micro-batches: p of them through the first chunk, the same p through the second, and so
    on, then the next p; backwards likewise from the last chunk. Warm-up: ``(v - 1)p + 2(p - 1 - r)`` of the m·v
    forwards, then one forward and one backward in turn.

    Peak on rank 0: ``p + (p - 1)/v`` micro-batches, or m. Needs p to divide m. Source: Narayanan and others 2021
    (Megatron-LM), section 2.2.
    """
    total = m * v

    def forward(index: int) -> Action:
        turn, place = divmod(index, p * v)
        chunk, i = divmod(place, p)
        return Action(chunk * p + r, Op.F, turn * p + i)

    def backward(index: int) -> Action:
        turn, place = divmod(index, p * v)
        chunk, i = divmod(place, p)
        return Action((v - 1 - chunk) * p + r, Op.B, turn * p + i)

    warm_up = min((v - 1) * p + 2 * (p - 1 - r), total)
    row = [forward(index) for index in range(warm_up)]
    for index in range(total):
        if warm_up + index < total:
            row.append(forward(warm_up + index))
        row.append(backward(index))
    return tuple(row)


def zb_h1(p: int, m: int, r: int) -> Row:
    """1F1B with the backward cut in two: the input's gradient I at once, for the rank before waits for it; the weights'
    W of micro-batch i only after I of i + r, and at the end whatever is left.

    So the ranks that finish late (small r) have their W in step with I, and those that would idle at the end keep W
    for then. Peak: ``min(m, p)`` on every rank, what 1F1B has on its first. Source: Qi and others 2023 (Zero Bubble
    Pipeline Parallelism), section 2.
    """
    warm_up = min(m, p - 1 - r)
    row = [Action(r, Op.F, i) for i in range(warm_up)]
    for i in range(m):
        if warm_up + i < m:
            row.append(Action(r, Op.F, warm_up + i))
        row.append(Action(r, Op.I, i))
        if i >= r:
            row.append(Action(r, Op.W, i - r))
    row += [Action(r, Op.W, i) for i in range(max(0, m - r), m)]
    return tuple(row)
