"""Notebook 04: choose the chunk count by prediction, then measure."""

import pandas as pd

from tplab.lab.exercises.verdict import Verdict

_REGRET = 0.10


def check_chunk_choice(frame: pd.DataFrame, num_chunks: int) -> Verdict:
    """Whether ``num_chunks`` is within 10 % of the best time in ``frame`` (``chunks_frame``'s), which is its regret."""
    offered = frame["chunks"].tolist()
    if num_chunks not in offered:
        return Verdict(False, f"choose one of the chunk counts that were measured: {', '.join(map(str, offered))}.")
    times = frame.set_index("chunks")["total_us"]
    best, regret = (
        int(frame["chunks"].iloc[int(frame["total_us"].argmin())]),
        float(times[num_chunks] / times.min() - 1),
    )
    chosen = f"{num_chunks} chunk{'s' * (num_chunks > 1)}"
    said = f"{chosen}: {times[num_chunks] / 1e3:.1f} ms, the best ({best}) {times.min() / 1e3:.1f} ms"
    if regret <= _REGRET:
        return Verdict(True, f"{said}: a regret of {regret:.0%}.")
    why = (
        "each chunk pays the link's latency once more"
        if num_chunks > best
        else "the last chunk's all-reduce has nothing left to hide behind, and it is large"
    )
    return Verdict(False, f"{said}: a regret of {regret:.0%}. With {chosen} {why}.")
