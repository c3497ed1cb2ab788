"""Who has not joined which collective: from what the ranks say of their calls to one plain sentence.

Pure: no process, no clock. The reasons are looked for in this order:

- two ranks gave the same collective of a group another kind, root, dtype or size, or a send met a recv of another size
  (gloo ends the process of a rank that is sent more than it expects, so of that one only its last words are known);
- a rank that waits for nobody has not come to what others wait in: it is elsewhere, has returned, raised, ended, or
  says nothing;
- ranks wait for each other in a circle;
- everybody came, and it still goes on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Literal

from tplab.cluster import naming
from tplab.cluster.calls import BETWEEN_TWO, NO_CALLS, Call, Calls, Frame, GroupFacts, Position
from tplab.cluster.hang_words import (
    describe,
    inflect,
    is_not_ours,
    name_place,
    ordinal,
    own_line,
    tell_doing,
    tell_size,
)

_ROOTED = ("broadcast", "reduce", "gather", "scatter")
_FROM_ROOT = ("broadcast", "scatter")
_SAME_SIZE_ALWAYS = ("all_reduce", "broadcast", "reduce")
_NEED_ALL = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier")
_SIZES_MAY_DIFFER = ("all_to_all", "barrier")
_CALLS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class RankView:
    """One rank of a diagnosis, for people."""

    rank: int
    state: str
    """``waits``, ``missing`` or what its position says."""
    doing: str
    """What it does, in words."""
    waits_for: tuple[int, ...]
    """Whom it waits for."""
    calls: tuple[Call, ...]
    """The last calls of the rank, newest first."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Who waits in what, and who is missing."""

    sentence: str
    """The reason, in one sentence without a full stop."""
    waiting: dict[int, Call]
    """Rank -> the call that it waits in."""
    missing: tuple[int, ...]
    """Ranks that others wait for, and that wait for nobody."""
    ranks: tuple[RankView, ...]
    """Every rank."""
    reason: Literal["mismatch", "missing", "circle", "slow"] = field(default="missing")
    """One of the reasons that the module's docstring lists: ``missing`` is the second of them."""
    groups: dict[str, str] = field(default_factory=dict)
    """Name of a group -> what to call it, such as ``the first group of ranks 0, 1``; empty for the default one."""

    def __str__(self) -> str:
        lines = [f"{naming.capital(self.sentence)}."]
        for view in self.ranks:
            last = ", ".join(describe(call) for call in view.calls)
            lines.append(f"  rank {view.rank} {view.doing}" + (f"; its last calls: {last}" if last else ""))
        return "\n".join(lines)


def diagnose(positions: Mapping[int, Position], hosts: Sequence[str] = ()) -> Diagnosis | None:
    """Judge where the ranks were; None where none of them waits for another and none disagrees.

    ``hosts``: name of each rank's host; empty where all are on one machine.
    """
    ranks = _Ranks(positions, hosts)
    found = ranks.mismatch() or ranks.absence() or ranks.circle() or ranks.slowness()
    if found is None:
        return None
    reason, sentence, missing = found
    views = tuple(map(ranks.view, sorted(positions)))
    return Diagnosis(sentence, ranks.waiting, missing, views, reason, ranks.group_words)


_Found = tuple[Literal["mismatch", "missing", "circle", "slow"], str, tuple[int, ...]]


class _Ranks:
    def __init__(self, positions: Mapping[int, Position], hosts: Sequence[str]) -> None:
        self._positions = positions
        self._hosts = hosts
        said = [facts for position in positions.values() for facts in position.calls.groups]
        known = {facts.name: facts for facts in said}
        self._groups = sorted(known.values(), key=lambda facts: (not facts.is_default, len(facts.name), facts.name))
        self.waiting = {rank: call for rank in sorted(positions) if (call := _blocked_in(positions[rank])) is not None}
        if not self.waiting:  # with NCCL a rank waits for the GPU, and not for a call
            for rank in sorted(positions):
                if positions[rank].status == "running" and (call := self._first_not_joined(rank)) is not None:
                    self.waiting[rank] = call

    @cached_property
    def _missing_of(self) -> dict[int, list[int]]:
        return {rank: self._missing(rank, call) for rank, call in self.waiting.items()}

    def mismatch(self) -> _Found | None:
        """Two calls that meet and do not fit."""
        for group in self._groups:
            for number in sorted(self._numbers(group.name)):
                meet = {rank: call for rank in group.ranks if (call := self._collective(rank, group.name, number))}
                if sentence := self._difference(meet):
                    return "mismatch", sentence, ()
        for rank, position in self._positions.items():
            if position.sizes is not None:
                return "mismatch", self._oversized(rank, position.frames, *position.sizes), ()
        for rank, send in self._all_calls():
            recv = self._partner(rank, send) if send.kind == "send" else None
            if send.peer is not None and recv is not None:
                differs = (send.num_elements, send.dtype) != (recv.num_elements, recv.dtype)
                if differs and not send.state == recv.state == "done":
                    sends = (
                        f"{self._name([rank])} sends {tell_size(send)} to rank {send.peer} ({self._place(rank, send)})"
                    )
                    receives = f"{self._name([send.peer])} receives {tell_size(recv)} ({self._place(send.peer, recv)})"
                    return "mismatch", f"{sends} where {receives}", ()
        return None

    def _oversized(self, rank: int, frames: Sequence[Frame], came: int, room: int) -> str:
        """What a rank died of that was sent more than it expected."""
        at = own_line(frames)
        words = f"{self._name([rank])} was sent {came:,} bytes where it expected {room:,}"
        words += f" ({name_place(at)})" if at is not None else ""
        for other, position in self._positions.items():
            call = next((each for each in position.calls.calls[::-1] if each.state != "done"), None)
            if call is not None:
                words += f", and rank {other} gives {tell_size(call)} in {describe(call)} ({self._place(other, call)})"
        return f"{words}: what they give does not have the same size"

    def absence(self) -> _Found | None:
        """Somebody waits for a rank that waits for nobody."""
        together: dict[tuple[int, ...], list[int]] = {}
        for rank, missing in self._missing_of.items():
            if absent := tuple(each for each in missing if each not in self.waiting):
                together.setdefault(absent, []).append(rank)
        if not together:
            return None
        absent, waiting = max(together.items(), key=lambda item: len(item[1]))
        alike: dict[str, list[int]] = {}
        for rank in absent:
            alike.setdefault(tell_doing(self._positions[rank]) if rank in self._positions else "", []).append(rank)
        whys = [self._why_absent(ranks, self.waiting[waiting[0]]) for ranks in alike.values()]
        return "missing", "; ".join([self._wait(waiting), *whys]), absent

    def circle(self) -> _Found | None:
        """Everybody who is missing waits as well."""
        for start in self.waiting:
            path = [start]
            while path[-1] in self.waiting and (following := self._missing_of[path[-1]]):
                after = following[0]
                if after in path:
                    circle = path[path.index(after) :]
                    parts = [
                        f"{self._name([rank])} waits in {self._where(rank)} for rank {other}"
                        for rank, other in pairwise([*circle, circle[0]])
                    ]
                    return "circle", f"{', and '.join(parts)}: they wait for each other", ()
                path.append(after)
        return None

    def slowness(self) -> _Found | None:
        """All have come."""
        if not self.waiting:
            return None
        wait = self._wait([*self.waiting])
        left = tuple(rank for rank, position in self._positions.items() if position.status in ("raised", "ended"))
        if left:
            came = [f"{self._name([rank])} came there, but it {tell_doing(self._positions[rank])}" for rank in left]
            return "missing", "; ".join([wait, *came]), left
        why = "it takes longer than the run may, or a connection is lost"
        return "slow", f"{wait}, and nobody is missing there: {why}", ()

    def _wait(self, ranks: Sequence[int]) -> str:
        """The ranks that wait in the same as the first, and in what."""
        same = [rank for rank in ranks if _meets(self.waiting[rank], self.waiting[ranks[0]])]
        return f"{self._name(same)} {inflect(same, 'wait')} in {self._where(ranks[0])}"

    def view(self, rank: int) -> RankView:
        position, call = self._positions[rank], self.waiting.get(rank)
        waits_for = tuple(self._missing_of.get(rank, ()))
        missed = any(rank in ranks for ranks in self._missing_of.values())
        state = "waits" if call is not None else "missing" if missed else position.status
        doing = f"waits in {self._where(rank)}" if call is not None else tell_doing(position)
        return RankView(rank, state, doing, waits_for, position.calls.calls[: -_CALLS_SHOWN - 1 : -1])

    def _numbers(self, group: str) -> set[int]:
        return {call.number for _, call in self._all_calls() if call.group == group and call.kind not in BETWEEN_TWO}

    def _all_calls(self) -> Iterator[tuple[int, Call]]:
        return ((rank, call) for rank, position in self._positions.items() for call in position.calls.calls)

    @cached_property
    def _by_number(self) -> dict[tuple[int, str, int], Call]:
        return {(rank, c.group, c.number): c for rank, c in self._all_calls() if c.kind not in BETWEEN_TWO}

    def _collective(self, rank: int, group: str, number: int) -> Call | None:
        return self._by_number.get((rank, group, number))

    def _partner(self, rank: int, call: Call) -> Call | None:
        """The call of its peer that a send or recv meets."""
        if call.peer is None:
            return None
        other = BETWEEN_TWO[call.kind == "send"]
        return self._messages.get((call.peer, other, call.group, call.number, rank, call.tag))

    @cached_property
    def _messages(self) -> dict[tuple[int, str, str, int, int | None, int], Call]:
        return {(rank, c.kind, c.group, c.number, c.peer, c.tag): c for rank, c in self._all_calls()}

    def _first_not_joined(self, rank: int) -> Call | None:
        calls = self._positions[rank].calls.calls
        return next((call for call in calls if self._missing(rank, call)), None)

    def _missing(self, rank: int, call: Call) -> list[int]:
        """Who has not come to a call of a rank."""
        if call.kind in BETWEEN_TWO:
            if call.peer is None:
                return []
            other = BETWEEN_TWO[call.kind == "send"]
            came = sum(
                count
                for group, kind, peer, tag, count in self._calls_of(call.peer).exchanged
                if (group, kind, tag) == (call.group, other, call.tag) and peer in (rank, None)
            )
            return [call.peer] if came < call.number else []
        facts = next(each for each in self._groups if each.name == call.group)
        absent = [other for other in facts.ranks if other != rank and self._count(other, facts) < call.number]
        return [rank for rank in absent if rank == call.peer] or absent if call.kind in _FROM_ROOT else absent

    def _count(self, rank: int, facts: GroupFacts) -> int:
        """How many collectives of a group a rank has called; of a rank that cannot say, what the others got from it."""
        if rank not in self._positions or self._positions[rank].status not in ("silent", "lost", "ended"):
            return dict(self._calls_of(rank).counts).get(facts.name, 0)
        through = [
            call.number
            for _, call in self._all_calls()
            if call.group == facts.name
            and call.kind in _NEED_ALL
            and call.state == "done"
            and (call.kind == "barrier" or not self._returns_early(call))
        ]
        return max(through, default=0)

    def _calls_of(self, rank: int) -> Calls:
        return self._positions[rank].calls if rank in self._positions else NO_CALLS

    def _difference(self, meet: Mapping[int, Call]) -> str:
        """How the calls of several ranks to one collective differ; empty if they fit."""
        if len(meet) < 2:
            return ""
        first = next(iter(meet.values()))
        name = f"{first.kind} #{first.number}{self._of_group(first)}"
        if parts := _apart(meet, lambda call: call.kind):
            words = [
                f"{self._name(ranks)} {inflect(ranks, 'be')} in {describe(meet[ranks[0]])}{self._of_group(first)} "
                f"({self._place(ranks[0], meet[ranks[0]])})"
                for ranks in parts
            ]
            return f"{' and '.join(words)}: all ranks of a group must call the same collectives in the same order"
        if first.kind in _ROOTED and (parts := _apart(meet, lambda call: call.peer)):
            words = [
                f"{self._name(ranks)} {inflect(ranks, 'name')} rank {meet[ranks[0]].peer} as the root of {name} "
                f"({self._place(ranks[0], meet[ranks[0]])})"
                for ranks in parts
            ]
            return " and ".join(words)
        if first.kind == "barrier" or all(self._is_through(call) for call in meet.values()):
            return ""
        parts = _apart(meet, lambda call: call.dtype)
        what = "dtype"
        if not parts and first.kind not in _SIZES_MAY_DIFFER:
            parts, what = _apart(meet, lambda call: call.num_elements), "size"
        if not parts:
            return ""
        (most, *_), others = parts[0], parts[1:]

        def amount(rank: int) -> str:
            call = meet[rank]
            return call.dtype if what == "dtype" else f"{call.num_elements:,} elements"

        words = [
            f"{self._name(ranks)} {inflect(ranks, 'give')} {amount(ranks[0])} "
            f"({self._place(ranks[0], meet[ranks[0]])}) where {self._name(parts[0])} {inflect(parts[0], 'give')} "
            f"{amount(most)} ({self._place(most, meet[most])})"
            for ranks in others
        ]
        return f"in {name} {' and '.join(words)}"

    def _name(self, ranks: Sequence[int]) -> str:
        return naming.several(ranks, self._hosts)

    def _is_through(self, call: Call) -> bool:
        """Whether a call did what it should, as far as its rank can tell. NCCL's pieces may be uneven (some are sent as
        several broadcasts), so of those nothing is said."""
        return call.state == "done" and not (self._returns_early(call) and call.kind in _SAME_SIZE_ALWAYS)

    def _returns_early(self, call: Call) -> bool:
        return any(facts.name == call.group and facts.returns_early for facts in self._groups)

    def _where(self, rank: int) -> str:
        """The call that a rank waits in, with its size, group and line."""
        call = self.waiting[rank]
        details = [each for each in (tell_size(call), self._place(rank, call)) if each]
        return f"{describe(call)}{self._of_group(call)} ({', '.join(details)})"

    def _place(self, rank: int, call: Call) -> str:
        """The line of the user's code that made a call."""
        place = call.where
        if call.state == "waits" and is_not_ours(place):
            place = own_line(self._positions[rank].frames) or place
        return name_place(place)

    def _of_group(self, call: Call) -> str:
        words = "" if call.kind in BETWEEN_TWO else self.group_words[call.group]
        return f" of {words}" if words else ""

    @cached_property
    def group_words(self) -> dict[str, str]:
        return {facts.name: self._call_group(facts) for facts in self._groups}

    def _call_group(self, facts: GroupFacts) -> str:
        if facts.is_default:
            return ""
        if facts.description:
            return f"group {facts.description}"
        alike = [each for each in self._groups if each.ranks == facts.ranks and not each.is_default]
        which = f"{ordinal(alike.index(facts))} " * (len(alike) > 1)
        return f"the {which}group of {naming.several(facts.ranks)}"

    def _why_absent(self, ranks: Sequence[int], call: Call) -> str:
        """Why ranks that do the same have not come."""
        who, each = self._name(ranks), ": each" * (len(ranks) > 1)
        if ranks[0] not in self._positions:
            return f"{who} {'take' if each else 'takes'} no part in the run"
        doing = tell_doing(self._positions[ranks[0]])
        if self._positions[ranks[0]].status in ("silent", "lost"):
            return f"{who}{each} {doing}"
        if call.kind in BETWEEN_TWO:
            other = BETWEEN_TWO[call.kind == "send"]
            never = f"{who} {'have' if each else 'has'} no {other} for it"
        else:
            never = f"{who} never came"
        return f"{never}{each or ': it'} {doing}"


def _blocked_in(position: Position) -> Call | None:
    if position.status != "running":
        return None
    return next((call for call in position.calls.calls[::-1] if call.state == "waits"), None)


def _meets(one: Call, other: Call) -> bool:
    return (one.kind, one.group, one.number, one.peer, one.tag) == (
        other.kind,
        other.group,
        other.number,
        other.peer,
        other.tag,
    )


def _apart(meet: Mapping[int, Call], key: Callable[[Call], object]) -> list[list[int]]:
    """The ranks by what they say, most of them first; empty if all say the same."""
    parts: dict[object, list[int]] = {}
    for rank, call in meet.items():
        parts.setdefault(key(call), []).append(rank)
    return sorted(parts.values(), key=len, reverse=True) if len(parts) > 1 else []


__all__ = ["Diagnosis", "RankView", "diagnose"]
