"""The shard painter: paint one block's four matrices by column, by row or replicated, on the picture itself, and see
what that does to the activations and which collectives it forces.

The browser plans by itself (``modules/plan.js``), so that the picture moves without a kernel; :func:`plan_block` stays
the model, and a browser test compares the two. A painting that cannot work (heads that do not divide by the ranks) is
said in words above the last good one, not prevented: which choices need which sizes to divide is half the lesson.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import traitlets

from tplab.checks import check_count, check_one_of
from tplab.collectives.cost import AlphaBeta
from tplab.lab.known_links import LINKS, THIS_MACHINE
from tplab.lab.pictures.picture import Picture
from tplab.lab.predict import Predict
from tplab.layers.plan import CHOICES, MATRICES, BlockPlan, plan_block

OPENING = ("column", "column", "row", "row")
"""What is painted first: every matrix cut, at a high price, so that there is something to find."""
TOKENS = tuple(1 << power for power in range(14))
MOST_RANKS = 8
_ITEMSIZE = 2  # bfloat16


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of a model that matter to a block."""

    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    num_layers: int


SHAPES: Mapping[str, Shape] = {
    "tiny": Shape(hidden=768, intermediate=3072, num_heads=12, num_kv_heads=4, num_layers=12),
    "Llama-3.1 8B": Shape(hidden=4096, intermediate=14336, num_heads=32, num_kv_heads=8, num_layers=32),
    "Llama-3.1 70B": Shape(hidden=8192, intermediate=28672, num_heads=64, num_kv_heads=8, num_layers=80),
}
"""Tiny has heads that divide by 3 and 6, and key-value heads that do not. Llama: Meta's published configurations."""


class ShardPainter(Picture):
    """One block, painted: a click or a key on a matrix turns it from column to row to replicated.

    ``paint(qkv="column", ...)`` does what clicks and sliders do; ``plan`` is what is shown, the last one that can work.

    Args:
        link: what was fitted on this machine: prices are its own, and it becomes the first link offered.
        after: a prediction that painting would give away: until a number was committed (or "Paint without predicting"
            pressed) the first painting is shown, and none other can be tried.
    """

    module = "painter"
    caption = "Shard painter"

    choices = traitlets.List(traitlets.Enum(CHOICES), list(OPENING), minlen=4, maxlen=4).tag(sync=True)
    """A choice for each of ``MATRICES``."""
    ranks = traitlets.Int(4, min=1, max=MOST_RANKS).tag(sync=True)
    tokens = traitlets.Enum(TOKENS, 1024).tag(sync=True)
    """Tokens of the pass."""
    model = traitlets.Enum(list(SHAPES), "Llama-3.1 8B").tag(sync=True)
    link = traitlets.Unicode().tag(sync=True)
    tried = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """The paintings that were shown, as the browser counts them: ``|``, ``-`` and ``=`` by matrix."""
    question = traitlets.Unicode().tag(sync=True)
    """What must be predicted before anything can be painted; empty: nothing."""
    shapes = traitlets.Dict({name: asdict(shape) for name, shape in SHAPES.items()}).tag(sync=True)
    links = traitlets.Dict().tag(sync=True)
    """Latency in us and bandwidth in GB/s of each link."""

    def __init__(self, *, link: AlphaBeta | None = None, after: Predict | None = None) -> None:
        offered = dict(LINKS) if link is None else {THIS_MACHINE: link, **LINKS}
        prices = {name: (each.alpha_us, each.beta_GBps) for name, each in offered.items()}
        super().__init__(links=prices, link=next(iter(offered)))
        self._plan = self._planned({})
        self.observe(self._follow, names=["choices", "ranks", "tokens", "model"])
        self._cover: Any = None
        if after is not None and after.value is None:
            self.question = f"First predict, above or where the answer is: {after.question}."
            self._cover = after.afterwards(self._uncover)
            self.observe(lambda change: change.new or after.reveal(), names="question")

    @property
    def plan(self) -> BlockPlan:
        """The plan shown: the last one that can work."""
        return self._plan

    def paint(
        self,
        *,
        qkv: str | None = None,
        out: str | None = None,
        up: str | None = None,
        down: str | None = None,
        ranks: int | None = None,
        tokens: int | None = None,
        model: str | None = None,
        link: str | None = None,
    ) -> "ShardPainter":
        """Paint and set controls; what is not given stays.

        Args:
            qkv, out, up, down: ``column``, ``row`` or ``replicated``, by matrix.
            ranks: number of ranks.
            tokens: tokens of the pass.
            model: name of the shapes.
            link: name of the link whose speed prices the collectives.

        Raises:
            ValueError: for what is not offered, or cannot work together; nothing is changed then.
        """
        given = (qkv, out, up, down)
        choices = [old if new is None else new for old, new in zip(self.choices, given, strict=True)]
        for name, choice in zip(MATRICES, choices, strict=True):
            check_one_of(name, choice, CHOICES)
        wanted: dict[str, Any] = {"choices": choices}
        if ranks is not None:
            wanted["ranks"] = check_count("ranks", ranks, least=1, most=MOST_RANKS)
        offered: tuple[tuple[str, Any, Any], ...] = (
            ("tokens", tokens, TOKENS),
            ("model", model, tuple(SHAPES)),
            ("link", link, tuple(self.links)),
        )
        wanted |= {name: check_one_of(name, value, values) for name, value, values in offered if value is not None}
        self._planned(wanted)  # names what does not divide, before anything is changed
        with self.hold_trait_notifications():
            for name, value in wanted.items():
                setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        painted = ", ".join(f"{name} {choice}" for name, choice in self.plan.choices.items())
        return f"Shard painter, {self.plan.n} ranks: {painted}: {self.plan.summary}"

    def _planned(self, changes: Mapping[str, Any]) -> BlockPlan:
        wanted = {name: getattr(self, name) for name in ("choices", "ranks", "tokens", "model")} | dict(changes)
        shape = SHAPES[wanted["model"]]
        return plan_block(
            wanted["choices"],
            hidden=shape.hidden,
            intermediate=shape.intermediate,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            tokens=wanted["tokens"],
            itemsize=_ITEMSIZE,
            n=wanted["ranks"],
        )

    def _follow(self, _: Any) -> None:
        """Plan anew; what cannot work leaves the last plan, as the browser leaves the last drawing."""
        try:
            self._plan = self._planned({})
        except ValueError:
            return

    def _uncover(self) -> None:
        """The prediction was made."""
        self.question = ""
