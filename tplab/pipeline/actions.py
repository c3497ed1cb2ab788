"""One thing that a rank of a pipeline does, and how it is written.

The words are those of ``torch.distributed.pipelining``: ``2F0`` is the forward of micro-batch 0 on stage 2;
``1SEND_F2`` sends what stage 1 made of micro-batch 2 to the next stage.
"""

import re
from enum import StrEnum
from typing import NamedTuple

from tplab.shown import shown


class Op(StrEnum):
    """What an action does; the letters are torch's."""

    F = "F"
    """Forward of one stage."""
    B = "B"
    """Whole backward: gradients of the input and of the weights, I and W in one."""
    I = "I"  # noqa: E741  (torch's letter)
    """Gradient of the stage's input, which the stage before waits for."""
    W = "W"
    """Gradient of the stage's weights, which nobody waits for."""
    SEND_F = "SEND_F"
    """Send the stage's output on: to the next stage, or from the last one (the sampled token) to the first."""
    RECV_F = "RECV_F"
    """Receive the stage's input."""
    SEND_B = "SEND_B"
    """Send the gradient of the stage's input to the stage before."""
    RECV_B = "RECV_B"
    """Receive the gradient of the stage's output from the stage after."""

    @property
    def is_compute(self) -> bool:
        """F, B, I or W."""
        return self in COMPUTE

    @property
    def is_send(self) -> bool:
        return self in (Op.SEND_F, Op.SEND_B)

    @property
    def is_recv(self) -> bool:
        return self in (Op.RECV_F, Op.RECV_B)


COMPUTE = frozenset({Op.F, Op.B, Op.I, Op.W})
OPS = tuple(Op)
"""All ops in the order of their codes: ``OPS[schedule.columns.op[i]]``."""
CODES = {op: code for code, op in enumerate(OPS)}
_BY_LETTERS = {op.value: op for op in OPS}

MOST_DIGITS = 9
"""Most digits of an id."""
_CELL = re.compile(r"(\d+)(" + "|".join(sorted(OPS, key=len, reverse=True)) + r")(\d+)", re.ASCII)


class Action(NamedTuple):
    """One thing a rank does, for one stage and one micro-batch."""

    stage: int
    """Stage, 0 to p·v - 1."""
    op: Op
    micro_batch: int
    """Micro-batch id, 0 to m - 1."""

    def __str__(self) -> str:
        return f"{self.stage}{self.op.value}{self.micro_batch}"

    @classmethod
    def parse(cls, text: str) -> "Action":
        """The action that ``str`` writes as ``text``. Raises ``ValueError`` for anything else."""
        match = _CELL.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"text must be an action such as 2F0 or 1SEND_F2, stage, op ({', '.join(OPS)}) and micro-batch; "
                f"got {shown(text)}"
            )
        if max(len(match[1]), len(match[3])) > MOST_DIGITS:
            raise ValueError(f"ids of stages and micro-batches have at most {MOST_DIGITS} digits; got {shown(text)}")
        return cls(int(match[1]), _BY_LETTERS[match[2]], int(match[3]))
