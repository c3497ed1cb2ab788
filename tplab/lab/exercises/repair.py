"""Notebook 08, the capstone: a decoder with three planted bugs, repaired until its tokens are exact on TP × PP.

Each kind of try lets one thing at a time go wrong. After a prompt of one token attention has nothing to choose from, so
only stages, sums and the head count. After a longer one positions do, too. From the second new token on the cache does.
So the checker can say what it sees of each bug while the others are still there: a token that is named by its place in
its rank's share of the vocabulary is recognised where it is the place of the right one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tplab.checks import ArgumentError
from tplab.cluster import Cluster
from tplab.lab.exercises import on_ranks
from tplab.lab.exercises.trial import Trial
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker

if TYPE_CHECKING:
    from tplab.cluster import Rank

_HOME = "tplab.models.small_decoder"
_RANKS = (2, 4)
_VOCABULARY, _POSITIONS, _CACHE = range(3)


@dataclass(kw_only=True, slots=True)
class _Layout:
    """The tries of one layout, and what was seen."""

    trial: Trial
    tp: int
    pp: int
    symptoms: dict[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"TP {self.tp} × PP {self.pp}"

    def look(self) -> None:
        by_place = self._one_token()
        if self._long_prompt(by_place) or by_place:
            return  # what is fed back is wrong
        if self.tp > 1:
            self._ties()
        self._more_tokens()

    def _tokens(self, kind: str, number: int, what: str) -> tuple[list[int], list[int], list[int]]:
        """Tokens expected and come, and the places of the expected ones in their ranks' shares."""
        context = f"On {self}, {what}"
        seen = self.trial.run(_given, _compared, kind, number, self.tp, context=context)
        want, _, places = seen[0].value
        for each in seen:
            came = each.value[1]
            if isinstance(came, str):
                raise NotYetError(
                    f"{context}: every rank must return the {len(want)} new tokens as a list of ids; rank {each.rank} "
                    f"returned {came}."
                )
            if came != seen[0].value[1]:
                raise NotYetError(
                    f"{context}: the ranks do not agree: rank 0 returned {seen[0].value[1]}, rank {each.rank} {came}."
                )
        return want, seen[0].value[1], places

    def _one_token(self) -> bool:
        """Whether tokens are named by their places in the share of their rank."""
        what = "after a prompt of one token"
        tries = [self._tokens("one token", number, what) for number in range(self.tp)]
        wrong = [(want, got) for want, got, _ in tries if got != want]
        if not wrong:
            return False
        (want,), (got,) = wrong[0]
        if any(got != places for _, got, places in tries):
            raise NotYetError(
                f"On {self}, {what}: expected token {want}, got {got}. There is one position, and the cache is empty: "
                f"look at what the stages pass on, at the sums of each layer, and at how a rank names the token it "
                f"found."
            )
        self.symptoms[_VOCABULARY] = (
            f"{what} the next is right where the first rank of a group holds it in its share of the vocabulary, and "
            f"wrong where another does (expected {want}, got {got}). Look at how a rank names the token it found."
        )
        return True

    def _long_prompt(self, by_place: bool) -> bool:
        what = "after a prompt of 9 tokens"
        for number in range(2):
            want, got, places = self._tokens("long prompt", number, what)
            if got == want or (by_place and got == places):
                continue
            if self.tp == 1:
                raise NotYetError(
                    f"On {self}, {what}: expected token {want[0]}, got {got[0]}, though after a single token it is "
                    f"right: look at positions, and at who may look at whom."
                )
            but = " but for the above" if by_place else ""
            self.symptoms[_POSITIONS] = (
                f"{what} the next is wrong (expected {want[0]}, got {got[0]}); after one token, and on TP 1, it is "
                f"right{but}. Look at what depends on where a token stands, and on how a layer is cut."
            )
            return True
        return False

    def _ties(self) -> None:
        want, got, _ = self._tokens("ties", 0, "where two tokens are equally likely")
        if got != want:
            raise NotYetError(
                f"On {self}: of two equally likely tokens the lower one must be taken, {want[0]}; you take {got[0]}. "
                f"So does argmax in one process, and tokens must be exact."
            )

    def _more_tokens(self) -> None:
        what = "after a prompt of 6 tokens"
        for number in range(2):
            want, got, _ = self._tokens("more tokens", number, what)
            first = next((i for i, (a, b) in enumerate(zip(want, got, strict=True)) if a != b), None)
            if first is None:
                continue
            said = f"{what} new token {first + 1} of {len(want)} is the first wrong one"
            came = f"expected {want[first]}, got {got[first]}"
            if self.pp == 1 or first == 0:
                raise NotYetError(
                    f"On {self}, {said} ({came}). Look at what is kept from step to step, and where it is read."
                )
            self.symptoms[_CACHE] = (
                f"{said} ({came}); the one after the prompt is right. Look at what a stage remembers from step to "
                f"step, and under which name."
            )
            return


@checker("08-repair")
def check_repair(cluster: Cluster, decoder: Callable[..., Any], *, timeout: float = 20.0) -> Verdict:
    """``decoder(rank, part, prompt, new_tokens)``: the greedy tokens after ``prompt``, a list of ids, on every rank.

    ``part`` is what the rank holds of a model that is drawn anew for each try
    (:class:`~tplab.models.small_decoder.Part`). Tokens must be those of one process, of equally likely ones the
    lowest, in every layout TP × PP of the cluster's 2 or 4 ranks.
    """
    if isinstance(cluster, Cluster) and cluster.num_ranks not in _RANKS:
        raise ArgumentError("cluster", cluster.num_ranks, "must have 2 or 4 ranks: pool.num_ranks = 4 changes it")
    trial = Trial(cluster, decoder, timeout=timeout, modules=(_HOME,))
    found: dict[int, str] = {}
    layouts = list(_layouts(trial))
    for layout in layouts:
        layout.look()
        for kind, text in layout.symptoms.items():
            found.setdefault(kind, f"On {layout}, {text}")
    if not found:
        return Verdict(True, f"token for token as in one process, on {', '.join(map(str, layouts))}.")
    count = "One thing is" if len(found) == 1 else f"{len(found)} things are"
    raise NotYetError("\n".join([f"{count} wrong still.", *(found[kind] for kind in sorted(found))]))


def _layouts(trial: Trial) -> Iterator[_Layout]:
    n = trial.cluster.num_ranks
    for tp in (1, 2, 4):
        if tp <= n:
            yield _Layout(trial=trial, tp=tp, pp=n // tp)


def _given(rank: "Rank", seed: int, kind: str, number: int, tp: int) -> tuple[Any, ...]:
    from tplab.models.small_decoder import Probe

    return Probe(kind=kind, number=number, tp=tp).part(rank, seed)


def _compared(rank: "Rank", seed: int, got: Any, kind: str, number: int, tp: int) -> tuple[Any, ...]:
    """Tokens expected; what came, as tokens or in words; and the places of those expected in their shards."""
    import torch

    from tplab.models.small_decoder import Probe

    want, places = Probe(kind=kind, number=number, tp=tp).expected(seed)
    made = on_ranks.as_tensor(got)
    if not isinstance(made, torch.Tensor) or made.is_floating_point() or made.dtype == torch.bool:
        return want, on_ranks.described(got), places
    tokens: list[int] = made.flatten().tolist()
    return want, tokens if len(tokens) == len(want) else f"{len(tokens)} tokens", places
