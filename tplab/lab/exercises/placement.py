"""Notebook 07: two groups of two GPUs, chosen from the text of ``nvidia-smi topo -m``.

A group is as slow as its slowest link, and two stages as slow as the slower group, so what counts is the slowest link
inside the two groups; TP 2 × PP 2 needs no more. Machines have four to eight GPUs. Each one's numbers are dealt anew,
but for the one on which the order of numbers is right, so that no answer fits by luck.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tplab.lab.exercises.answers import as_count
from tplab.lab.exercises.trial import check_function
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker, not_yet_for
from tplab.shown import shown
from tplab.topology.machine.presets import DGX1_NVLINKS

PCIE_WORDS = ("PIX", "PXB", "PHB", "NODE", "SYS")
"""Paths over PCIe from the fastest to the slowest, all slower than any number of NVLinks."""

Pair = tuple[int, int]
Groups = tuple[Pair, Pair]


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """GPUs of a machine and the words for what lies between them."""

    what: str
    """The machine in a few words, for messages."""
    words: tuple[tuple[str, ...], ...]
    """The table's cells, GPUs by GPUs; ``X`` on the diagonal."""
    nics: int = 0
    """Network cards, with rows and columns of their own."""
    affinity: bool = True
    """Whether columns of affinity follow."""

    @property
    def num_gpus(self) -> int:
        """GPUs of the machine."""
        return len(self.words)

    def dealt(self, order: Sequence[int]) -> "Topology":
        """The same machine with GPU i called ``order[i]``."""
        back = {name: gpu for gpu, name in enumerate(order)}
        count = range(self.num_gpus)
        words = tuple(tuple(self.words[back[i]][back[j]] for j in count) for i in count)
        return Topology(what=self.what, words=words, nics=self.nics, affinity=self.affinity)

    def text(self) -> str:
        """As ``nvidia-smi topo -m`` prints it."""
        gpus, nics = self.num_gpus, self.nics
        names = [*(f"GPU{i}" for i in range(gpus)), *(f"NIC{i}" for i in range(nics))]
        rows = [["", *names, *(("CPU Affinity", "NUMA Affinity", "GPU NUMA ID") if self.affinity else ())]]
        for i, name in enumerate(names):
            cells = [self.words[i][j] if i < gpus and j < gpus else _near(i, j, gpus) for j in range(gpus + nics)]
            own = (["0-31" if i < gpus / 2 else "32-63", str(int(i >= gpus / 2)), "N/A"]) if self.affinity else []
            rows.append([name, *(f" {cell} " for cell in cells), *(own if i < gpus else [])])
        meaning = {
            "X": "itself",
            "SYS": "the way to another NUMA node",
            "NODE": "several host bridges of a NUMA node",
            "PHB": "the CPU's host bridge",
            "PXB": "several PCIe bridges",
            "PIX": "a single PCIe bridge",
            "NV#": "a bond of # NVLinks",
        }
        legend = ["", "Legend:", "", *(f"  {word:<4} = {words}" for word, words in meaning.items())]
        cards = ["", "NIC Legend:", "", *(f"  NIC{i}: mlx5_{i}" for i in range(nics))] if nics else []
        return "\n".join(["\t".join(row) for row in rows] + legend + cards) + "\n"

    def speed(self, pair: Pair) -> int:
        """Larger is faster, by the table's words alone."""
        word = self.words[pair[0]][pair[1]]
        return 1 + int(word[2:]) if word.startswith("NV") else -PCIE_WORDS.index(word)

    def slowest(self, groups: Groups) -> Pair:
        """The group with the slowest link."""
        return min(groups, key=self.speed)

    def best(self) -> Groups:
        """Two groups whose slowest link is the fastest possible: every choice is tried, 210 with eight GPUs."""
        pairs = list(combinations(range(self.num_gpus), 2))
        disjoint = [(a, b) for a, b in combinations(pairs, 2) if not set(a) & set(b)]
        return max(disjoint, key=lambda groups: self.speed(self.slowest(groups)))


def _near(i: int, j: int, gpus: int) -> str:
    """What lies between a network card and anything else; card k sits beside GPU k."""
    if i == j:
        return "X"
    return "PIX" if abs(i - j) == gpus else "SYS"


def _made(what: str, count: int, pairs: Mapping[Pair, str], rest: str, **more: Any) -> Topology:
    words = [["X" if i == j else rest for j in range(count)] for i in range(count)]
    for (i, j), word in pairs.items():
        words[i][j] = words[j][i] = word
    return Topology(what=what, words=tuple(map(tuple, words)), **more)


def _topologies(draw: random.Random) -> list[Topology]:
    """Eight machines, numbers dealt."""
    dgx1 = {(i, j): f"NV{n}" for i, row in enumerate(DGX1_NVLINKS) for j, n in enumerate(row) if i < j and n}
    sockets = {pair: "NODE" for half in (range(4), range(4, 8)) for pair in combinations(half, 2)}
    switches = {(i, i + 1): "PIX" for i in range(0, 8, 2)}
    in_order = _made("four GPUs with two bridges", 4, {(0, 1): "NV12", (2, 3): "NV12"}, "SYS")
    others = [
        # NV12 is more than NV4, though not as text, and not by its first digit.
        _made(
            "four GPUs with long and short bridges",
            4,
            {(0, 2): "NV12", (1, 3): "NV12", (0, 1): "NV4", (2, 3): "NV4"},
            "SYS",
            nics=2,
        ),
        # The fastest pair leaves a slow one; two middling ones are better. Words alone do not say so, pairs do.
        _made("four GPUs with unequal bridges", 4, {(0, 1): "NV4", (0, 2): "NV2", (1, 3): "NV2"}, "SYS"),
        _made("a DGX-1", 8, dgx1, "SYS", nics=4),
        _made("eight cards on PCIe switches", 8, sockets | switches, "SYS", affinity=False),
        _made("four GPUs on NVSwitch", 4, {}, "NV18", nics=2),  # whatever is taken is right
        _made(
            "six cards, one pair bridged",
            6,
            {(0, 1): "NV4", (2, 3): "PHB", (4, 5): "PXB", (1, 2): "PIX"},
            "SYS",
            nics=2,
        ),
        _made("five GPUs in a chain", 5, {(0, 1): "NV4", (1, 2): "NV12", (2, 3): "NV4", (3, 4): "PIX"}, "NODE"),
    ]
    dealt = [topology.dealt(_dealt(topology, draw)) for topology in others]
    machines = [in_order, *dealt]
    draw.shuffle(machines)
    return machines


def _dealt(topology: Topology, draw: random.Random) -> list[int]:
    """New numbers of the GPUs, such that 0-1 and 2-3 are not among the best choices, where there are worse ones."""
    order = list(range(topology.num_gpus))
    for _ in range(50):
        draw.shuffle(order)
        dealt = topology.dealt(order)
        naive = dealt.speed(dealt.slowest(((0, 1), (2, 3))))
        if naive < dealt.speed(dealt.slowest(dealt.best())):
            break
    return order


@checker("07-place")
def check_place(place: Callable[[str], Any]) -> Verdict:
    """``place(topo)``: two groups of two GPUs, such as ``[(0, 2), (1, 3)]``, from the text of ``nvidia-smi topo -m``.

    Passes if the slowest link inside the groups is as fast as it can be on each of 8 machines of four to eight GPUs,
    whose numbers are dealt anew. From fast to slow: ``NV#`` by number, ``PIX``, ``PXB``, ``PHB``, ``NODE``, ``SYS``.
    """
    check_function(place)
    machines = _topologies(random.Random())
    for topology in machines:
        text = topology.text()
        table = text.partition("\n\n")[0].expandtabs(8)
        try:
            made = place(text)
        except Exception as error:
            try:
                not_yet_for(error, place, f"On {topology.what}")
            except NotYetError as fault:
                raise NotYetError(fault.verdict.message, f"{table}\n\n{fault.verdict.details}") from None
        try:
            groups = _groups(made, topology.num_gpus)
        except ValueError as error:
            raise NotYetError(f"On {topology.what}: {error}", table) from None
        found, best = topology.slowest(groups), topology.best()
        if topology.speed(found) < topology.speed(topology.slowest(best)):
            raise NotYetError(f"On {topology.what}: {_slow(topology, groups, found, best)}", table)
    return Verdict(True, f"the slowest link inside a group is as fast as can be on {len(machines)} machines.")


def _slow(topology: Topology, groups: Groups, found: Pair, best: Groups) -> str:
    """Which group is held up, and what would be possible. Not by which GPUs."""
    word = topology.words[found[0]][found[1]]
    limit = topology.slowest(best)
    text = (
        f"you take {_named(groups)}; between GPU{found[0]} and GPU{found[1]} lies {word}, and with other groups the "
        f"slowest link is {topology.words[limit[0]][limit[1]]}."
    )
    fastest = max(topology.speed(pair) for pair in combinations(range(topology.num_gpus), 2))
    if any(topology.speed(group) == fastest for group in groups):
        return f"{text} The fastest pair is worth nothing if it leaves a slow one: the slower group counts."
    return f"{text} GPUs with neighbouring numbers are not neighbours on the board."


def _named(groups: Groups) -> str:
    return " and ".join(f"GPU{a} with GPU{b}" for a, b in groups)


def _groups(made: Any, num_gpus: int) -> Groups:
    """What was returned. Raises ``ValueError`` in the learner's words."""
    wrong = ValueError(
        f"it must return two groups of two GPUs, such as [(0, 2), (1, 3)]; it returned "
        f"{shown(made.tolist() if hasattr(made, 'tolist') else made)}."
    )
    try:
        groups = [tuple(_gpu(gpu, num_gpus) for gpu in group) for group in made if not isinstance(group, str)]
    except TypeError:
        raise wrong from None
    if len(groups) != 2 or any(len(group) != 2 for group in groups):
        raise wrong
    (a, b), (c, d) = groups
    twice = {gpu for gpu in (a, b, c, d) if [a, b, c, d].count(gpu) > 1}
    if twice:
        raise ValueError(f"GPU{min(twice)} is there twice: the two groups are four different GPUs.")
    return (a, b), (c, d)


def _gpu(value: Any, num_gpus: int) -> int:
    """A GPU's number, also as the table has it: ``GPU3``."""
    is_name = isinstance(value, str) and value.upper().removeprefix("GPU").isdecimal()
    number = int(value.upper().removeprefix("GPU")) if is_name else as_count(value)
    if number is None or not 0 <= number < num_gpus:
        raise ValueError(f"{shown(value)} is no GPU of this machine: they are GPU0 to GPU{num_gpus - 1}.")
    return number
