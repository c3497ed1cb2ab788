"""From what the ranks said, and did not say, to the one exception the caller sees. Pure: no process, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tplab.cluster import naming, wire
from tplab.cluster.calls import NO_CALLS, Calls, Frame, Position
from tplab.cluster.errors import ClusterError, HostLost, RankDied, RankError, RankTimeout, RunStopped
from tplab.cluster.hang import Diagnosis, diagnose
from tplab.cluster.last_words import find_frames, find_sizes
from tplab.cluster.packing import unpack
from tplab.moved import say_new_names

Cause = Literal["fault", "timeout", "stop"]

_OUTPUT_LINES_SHOWN = 20
# What gloo says when it cannot take in another connection; it ends the process then.
_FLOODED = "accept: Too many open files"


@dataclass(slots=True)
class Evidence:
    """What is known about one run, or one start (``run_name`` empty), as it comes in."""

    run_name: str
    world_size: int
    timeout: float | None
    cause: Cause | None = None
    """Why the run ends before every rank has answered well."""
    answers: dict[int, wire.Answer] = field(default_factory=dict)
    """Rank -> its answer, in order of arrival."""
    start_faults: dict[int, wire.RankFault] = field(default_factory=dict)
    """Ranks that failed before they were ready, in order of arrival."""
    broken: dict[int, str] = field(default_factory=dict)
    """Rank -> what it sent that is no message, in order of arrival."""
    deaths: dict[int, int | None] = field(default_factory=dict)
    """Rank -> exit code, in order of arrival."""
    stacks: dict[int, tuple[Frame, ...]] = field(default_factory=dict)
    """Rank -> its stack, of ranks that had not answered."""
    hosts: Sequence[str] = ()
    """Name of each rank's host; empty where all are on this machine."""
    lost: dict[int, str] = field(default_factory=dict)
    """Ranks of which nobody knows whether they ended, and why: their host is not heard of any more."""
    calls: dict[int, Calls] = field(default_factory=dict)
    """Rank -> its collectives, sends and receives, of ranks that were asked."""
    output: Sequence[str] = ()
    """The last lines of the ranks, each with its rank."""
    aside: Sequence[dict[str, int]] = ()
    """What the ranks that have no part in the run last said of the groups that they are in."""

    @property
    def faults(self) -> dict[int, wire.RankFault]:
        """Ranks that raised, in order of arrival."""
        return self.start_faults | {rank: a.fault for rank, a in self.answers.items() if a.fault is not None}

    @property
    def missing(self) -> list[int]:
        """Ranks that have neither answered nor died."""
        done = self.answers.keys() | self.deaths.keys() | self.start_faults.keys() | self.broken.keys()
        return [rank for rank in range(self.world_size) if rank not in done]

    @property
    def reachable(self) -> list[int]:
        """Ranks that can be asked where they are."""
        gone = self.deaths.keys() | self.broken.keys() | self.start_faults.keys()
        return [rank for rank in range(self.world_size) if rank not in gone]

    @property
    def hang(self) -> Diagnosis | None:
        """Who waits for whom."""
        if not self.run_name:
            return None
        return diagnose({rank: self._position(rank) for rank in range(self.world_size)}, self.hosts)

    def _position(self, rank: int) -> Position:
        calls = self.calls.get(rank, NO_CALLS)
        if rank in self.lost:
            return Position("lost", calls=calls)
        if rank in self.deaths or rank in self.broken:
            lines = _lines_of(self, rank)
            return Position("ended", find_frames(lines, "_execute"), calls, sizes=find_sizes(lines))
        if (answer := self.answers.get(rank)) is not None:
            fault = answer.fault
            calls = calls if fault is None else answer.calls
            return Position("returned" if fault is None else "raised", (), calls, fault.type_name if fault else "")
        return Position("running" if rank in self.stacks else "silent", self.stacks.get(rank, ()), calls)

    @property
    def complete(self) -> bool:
        return not self.missing

    @property
    def succeeded(self) -> bool:
        return self.complete and not self.deaths and not self.faults and not self.broken

    @property
    def fit(self) -> bool:
        """Every rank that answered is fit for another run."""
        return all(answer.fit for answer in self.answers.values())

    @property
    def in_step(self) -> bool:
        """Every rank answered, its device works, and all handed the same number of operations to the process group, so
        that the next collective of each meets the next of the others. Otherwise the ranks must be replaced."""
        answers = self.answers.values()
        if len(answers) < self.world_size or not self.fit:
            return False
        counts: dict[str, set[int]] = {}
        for sequences in (*(answer.sequences for answer in answers), *self.aside):
            for group, count in sequences.items():
                counts.setdefault(group, set()).add(count)
        return all(len(seen) == 1 for seen in counts.values())


def judge(evidence: Evidence, output: Sequence[str] = (), spoiled: str = "") -> ClusterError:
    """The exception for a run that did not succeed.

    Args:
        evidence: what is known about it.
        output: the last lines of the ranks, each with its rank.
        spoiled: who came between the ranks when they were started before, if anybody did.
    """
    evidence.output = output
    if evidence.cause == "stop":
        error: ClusterError = RunStopped(_compose(f"{_what(evidence)} was stopped", evidence))
    elif evidence.broken:
        error = _broke(evidence)
    elif evidence.deaths:
        error = _died(evidence, output)
    elif evidence.cause == "timeout" and evidence.missing:
        error = _timed_out(evidence)
    elif evidence.faults:
        error = _raised(evidence)
    else:
        raise AssertionError("a run without deaths, faults or missing ranks has not failed")
    rank = getattr(error, "rank", None)
    error.host = evidence.hosts[rank] if evidence.hosts and rank is not None else ""
    error.hang = evidence.hang
    if spoiled:
        error.add_note(f"An earlier attempt to start the ranks was given up: {spoiled}")
    return error


def not_started(reason: Exception | str, num_attempts: int = 1) -> ClusterError:
    """Why there are no ranks, where none of them could say it."""
    if isinstance(reason, ClusterError):
        return reason
    tries = f" in {num_attempts} attempts" if num_attempts > 1 else ""
    return ClusterError(f"the ranks could not be started{tries}: {reason}")


def kernel_failed(called: str, error: BaseException) -> ClusterError:
    """What a run learns, by its name, or a start (no name), during which the kernel's own side failed."""
    fault = ClusterError(
        f"the kernel's side of the cluster failed {f'in {called}' if called else 'while starting'}: {error!r}. "
        "The ranks were ended; the next run starts fresh ones, with an empty rank.store."
    )
    fault.__cause__ = error
    return fault


def _broke(evidence: Evidence) -> RankError:
    rank, reason = next(iter(evidence.broken.items()))
    head = (
        f"{_named(evidence, rank)} sent what is no message {_where(evidence)}: {reason}. "
        "Something on that rank wrote to a file descriptor that is not its own: tplab's socket to the kernel"
    )
    return RankError(_compose(head, evidence), rank=rank)


def rebuild_values(evidence: Evidence) -> list[Any] | RankError:
    """The values of a run that succeeded, in rank order, or the error of the first that cannot be had here.

    The pickled values are let go on the way: they may be large.
    """
    values = []
    for rank in range(evidence.world_size):
        data = evidence.answers.pop(rank).value
        assert data is not None
        try:
            values.append(unpack(data))
        except BaseException as error:  # rebuilding a value may raise anything, SystemExit included
            way_out = "Return plain values or tensors, or make its class importable in the kernel"
            if isinstance(error, MemoryError):
                way_out = "The kernel is short of memory: return less, or leave the value in rank.store"
            fault = RankError(
                f"the value that rank {rank} returned cannot be rebuilt here: {error!r}. {way_out}", rank=rank
            )
            fault.__cause__ = error
            return fault
    return values


def _raised(evidence: Evidence) -> RankError:
    rank, fault = next(iter(evidence.faults.items()))
    traceback = wire.format_fault(fault, rank)
    head = f"{_named(evidence, rank)} raised {fault.type_name} {_where(evidence)}"
    error = RankError(_compose(head, evidence, traceback), rank=rank, traceback=traceback)
    error.__cause__ = wire.rebuild_exception(fault)
    return error


def _died(evidence: Evidence, output: Sequence[str]) -> RankDied:
    rank, exit_code = next(iter(evidence.deaths.items()))
    if rank in evidence.lost:
        return HostLost(
            _compose(f"{_named(evidence, rank)} {_where(evidence)}: {evidence.lost[rank]}", evidence), rank=rank
        )
    head = f"{_named(evidence, rank)} {wire.describe_exit(exit_code)} {_where(evidence)}"
    if exit_code == -9:
        head += " (if nobody did that on purpose: the system kills processes when memory runs out)"
    lines = _lines_of(evidence, rank)
    if any(_FLOODED in line for line in lines):
        head += (
            ": more connections came to a port of it than it may have open files (`ulimit -n`). Ranks connect once to "
            "each other, so another program or user of this machine did that: `ss -tpe` may say who"
        )
    lines = lines[-_OUTPUT_LINES_SHOWN:]
    details = f"Its last output:\n{chr(10).join(lines)}" if lines else ""
    return RankDied(_compose(head, evidence, details), rank=rank, exit_code=exit_code, output=lines)


def _timed_out(evidence: Evidence) -> RankTimeout:
    missing = evidence.missing
    # A rank that does not even say where it is may well be what the others wait for.
    silent = [rank for rank in missing if rank not in evidence.stacks]
    stacks = {rank: wire.format_frames(evidence.stacks[rank]) for rank in missing if rank in evidence.stacks}
    limit = f"{evidence.timeout:g} s"
    named = naming.several(missing, evidence.hosts)
    head = f"{named} of {evidence.world_size} did not answer within {limit} {_where(evidence)}"
    hang, hint = evidence.hang, ""
    waits = hang is not None
    if evidence.run_name and silent and not waits:
        hint = (
            f". {naming.capital(naming.several(silent, evidence.hosts))} did not even say where: "
            "compiled code holds Python's lock (the GIL) there, or the process is stopped"
        )
    elif evidence.run_name and not silent and _may_come(hang, missing):
        more = "--timeout more seconds" if _is_cell(evidence) else "run(..., timeout=) more seconds, or None"
        hint = f"if the work is just long, give {more}"
        if waits:
            hint = f". I{hint[1:]}"
        else:
            hint = f". A collective that not every rank enters with the same shape waits for ever; {hint}"
    return RankTimeout(_compose(head, evidence, hint=hint), ranks=missing, stacks=stacks)


def _may_come(hang: Diagnosis | None, running: Sequence[int]) -> bool:
    """Whether more time may help."""
    return hang is None or hang.reason == "slow" or any(rank in running for rank in hang.missing)


def _compose(head: str, evidence: Evidence, details: str = "", hint: str = "") -> str:
    """Head, who waits for whom, details, where the other ranks were, and what becomes of the ranks.

    A rank's own fault comes before who waited for it, unless what the ranks called does not fit together.
    """
    hang = evidence.hang
    first = hang is not None and (not details or hang.reason == "mismatch")
    parts = [f"{head}: {hang.sentence}{hint}" if hang is not None and first else head + hint, details]
    if hang is not None and not first:
        parts.append(f"{naming.capital(hang.sentence)}.")
    parts += [
        f"Meanwhile {_rank(evidence, rank)} was here:\n{wire.format_frames(evidence.stacks[rank])}"
        for rank in evidence.missing
        if evidence.stacks.get(rank)
    ]
    others = [rank for rank in evidence.faults if f"rank {rank} of" not in head]
    if evidence.cause != "stop":
        parts += [
            f"{naming.capital(_rank(evidence, rank))} failed too: {_in_one_line(evidence.faults[rank])}"
            for rank in others
        ]
    if evidence.run_name and not evidence.in_step:
        parts.append("The ranks were ended; the next run starts fresh ones, with an empty rank.store.")
    return "\n\n".join(part for part in parts if part)


def _named(evidence: Evidence, rank: int) -> str:
    return naming.of_all(rank, evidence.world_size, evidence.hosts)


def _rank(evidence: Evidence, rank: int) -> str:
    return naming.several([rank], evidence.hosts)


def _lines_of(evidence: Evidence, rank: int) -> list[str]:
    """What a rank printed last."""
    prefix = f"{naming.label(rank, evidence.hosts)} "
    return [line.removeprefix(prefix) for line in evidence.output if line.startswith(prefix)]


def _what(evidence: Evidence) -> str:
    return f"the run of {_called(evidence)}" if evidence.run_name else "the start of the ranks"


def _where(evidence: Evidence) -> str:
    return f"in {_called(evidence)}" if evidence.run_name else "while starting"


def _called(evidence: Evidence) -> str:
    return evidence.run_name if _is_cell(evidence) else f"{evidence.run_name}()"


def _is_cell(evidence: Evidence) -> bool:
    """Whether what ran is the text of a cell, which is named as its magic, and no function."""
    return evidence.run_name.startswith("%")


def _in_one_line(fault: wire.RankFault) -> str:
    """The line that has the exception's type: a SyntaxError shows its source before that, notes come after it."""
    lines = fault.text.strip().splitlines() or [""]
    return next((line for line in lines if line.partition(":")[0].rpartition(".")[2] == fault.type_name), lines[-1])


say_new_names(__name__)
__all__ = ["Cause", "Evidence", "judge", "kernel_failed", "not_started", "rebuild_values"]
