"""Which part of a model a rank holds: its layers, by pipeline stage, and its share of each, by tensor-parallel place.

Pure: no torch. The same arithmetic places weights on ranks and tells their bytes beforehand (``memory``).

Letters: p pipeline stages, t tensor-parallel degree, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """The layers of one pipeline stage, and whether the two ends of the model belong to it."""

    start: int
    end: int
    """First layer, and the one after the last."""
    first: bool
    """Holds the embedding."""
    last: bool
    """Holds the last norm and the output head."""

    @property
    def num_layers(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A model on tp x pp ranks: neighbouring ranks share a stage, as in ``rank.mesh``."""

    tp: int
    """t."""
    pp: int
    """p."""
    layers_of_stage: tuple[int, ...]
    """How many layers each stage has."""

    @classmethod
    def of(cls, num_layers: int, tp: int = 1, pp: int = 1, stages: Sequence[int] | None = None) -> "Layout":
        """``stages``: layers per stage; by default as even as possible, the longer ones in the middle, because the ends
        have the embedding and the output head besides.

        Raises ``ValueError`` for stages that are not pp, empty, or do not add up to the layers.
        """
        for name, size in (("tp", tp), ("pp", pp)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive whole number; got {size!r}")
        if pp > num_layers:
            raise ValueError(f"pp={pp} stages need a layer each, and the model has {num_layers}: use pp={num_layers}")
        if stages is None:
            counts = [num_layers // pp] * pp
            spare = num_layers % pp
            from_middle = sorted(range(pp), key=lambda stage: (abs(2 * stage - (pp - 1)), -stage))
            for stage in from_middle[:spare]:
                counts[stage] += 1
        else:
            counts = list(stages)
            whole = all(isinstance(count, int) and not isinstance(count, bool) and count >= 1 for count in counts)
            if len(counts) != pp or not whole or sum(counts) != num_layers:
                raise ValueError(
                    f"stages must be {pp} positive numbers of layers (pp={pp}) that add up to {num_layers}; got "
                    f"{counts}"
                )
        return cls(tp=tp, pp=pp, layers_of_stage=tuple(counts))

    @property
    def num_ranks(self) -> int:
        return self.tp * self.pp

    def place(self, rank: int) -> tuple[int, int]:
        """(stage, tensor-parallel index) of a rank."""
        if not 0 <= rank < self.num_ranks:
            raise ValueError(f"rank must be 0 to {self.num_ranks - 1} (tp={self.tp}, pp={self.pp}); got {rank}")
        return divmod(rank, self.tp)

    def spec(self, stage: int) -> StageSpec:
        """The layers of a stage."""
        start = sum(self.layers_of_stage[:stage])
        return StageSpec(
            start=start,
            end=start + self.layers_of_stage[stage],
            first=stage == 0,
            last=stage == self.pp - 1,
        )
