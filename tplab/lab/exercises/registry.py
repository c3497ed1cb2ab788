"""Every exercise: where it stands, what the learner writes, and who checks it.

Checkers are named, not imported: the list costs nothing to read.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from tplab.cluster import Cluster
from tplab.lab.exercises.verdict import Verdict

Difficulty = Literal["easy", "medium", "hard"]
_HOME = "tplab.lab.exercises"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exercise:
    """One exercise of a notebook."""

    name: str
    """Name in cells (metadata ``tplab.exercise``), progress and reports; begins with the notebook's number."""
    notebook: str
    """File name without its ending."""
    function: str
    """What the stub cell defines and the checker is given."""
    title: str
    """A few words."""
    difficulty: Difficulty
    """How hard it is, the notebook's own word."""
    minutes: int
    """What it takes a learner, as in the notebook."""
    num_ranks: int
    """Ranks that the checker wants; 0: it needs none."""
    checker: str
    """The checker's module below ``tplab.lab.exercises`` and its name, such as ``layers:check_mlp``."""
    allowed: tuple[str, ...] = ()
    """Public names of tplab that the answer may use also when it is graded, such as ``tplab.topology.place``."""

    @property
    def check_function(self) -> Callable[..., Verdict]:
        """The checker itself."""
        module, _, name = self.checker.partition(":")
        check: Callable[..., Verdict] = getattr(import_module(f"{_HOME}.{module}"), name)
        return check

    def check(self, cluster: Cluster | None, function: Callable[..., Any]) -> Verdict:
        """What the checker says of ``function``; ``cluster`` may be None where no ranks are needed."""
        checker = self.check_function
        if "cluster" not in inspect.signature(checker).parameters:
            return checker(function)
        first = next(iter(inspect.signature(checker).parameters))
        return checker(cluster, function) if first == "cluster" else checker(function, cluster)

    def grade(self, cluster: Cluster | None, function: Callable[..., Any]) -> Verdict:
        """:meth:`check` on fresh ranks, of an answer that may not call tplab, which has most answers ready."""
        from tplab.lab.exercises.own_work import find_library_use

        used = find_library_use(function, self.allowed)
        if used:
            return Verdict(False, f"{used}: write it yourself, without tplab.")
        if cluster is not None and cluster.launches:  # they may have run something
            cluster.whole.restart()
        return self.check(cluster, function)


EXERCISES: Mapping[str, Exercise] = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="00-product",
            notebook="00-start-here",
            function="reduce",
            title="Every rank holds the product",
            difficulty="easy",
            minutes=3,
            num_ranks=2,
            checker="reduction:check_reduction",
        ),
        Exercise(
            name="01-kv",
            notebook="01-memory-wall",
            function="my_kv_bytes_per_token",
            title="Bytes of keys and values per token",
            difficulty="medium",
            minutes=15,
            num_ranks=2,
            checker="memory:check_kv_bytes",
        ),
        Exercise(
            name="02-ring",
            notebook="02-collectives",
            function="my_ring_all_reduce",
            title="A ring all-reduce from messages",
            difficulty="medium",
            minutes=30,
            num_ranks=4,
            checker="ring:check_ring",
        ),
        Exercise(
            name="03-mlp",
            notebook="03-tensor-parallel-layers",
            function="my_mlp",
            title="A tensor-parallel MLP",
            difficulty="medium",
            minutes=10,
            num_ranks=2,
            checker="layers:check_mlp",
        ),
        Exercise(
            name="03-attention",
            notebook="03-tensor-parallel-layers",
            function="my_attention",
            title="A tensor-parallel attention",
            difficulty="hard",
            minutes=30,
            num_ranks=2,
            checker="layers:check_attention",
        ),
        Exercise(
            name="03-qkv",
            notebook="03-tensor-parallel-layers",
            function="my_qkv",
            title="A rank's rows of a fused QKV weight",
            difficulty="medium",
            minutes=20,
            num_ranks=4,
            checker="fused_qkv:check_qkv",
        ),
        Exercise(
            name="04-chunks",
            notebook="04-cheaper-communication",
            function="my_num_chunks",
            title="The chunk count, predicted",
            difficulty="medium",
            minutes=10,
            num_ranks=2,
            checker="overlap:check_chunk_choice",
        ),
        Exercise(
            name="04-overlap",
            notebook="04-cheaper-communication",
            function="my_overlap",
            title="An all-reduce hidden behind products",
            difficulty="medium",
            minutes=20,
            num_ranks=2,
            checker="hiding:check_overlap",
        ),
        Exercise(
            name="04-int8",
            notebook="04-cheaper-communication",
            function="my_all_reduce",
            title="An all-reduce in int8 messages",
            difficulty="hard",
            minutes=45,
            num_ranks=2,
            checker="quantised:check_int8_all_reduce",
        ),
        Exercise(
            name="05-schedule",
            notebook="05-pipelines",
            function="my_schedule",
            title="1F1B, written by hand",
            difficulty="medium",
            minutes=25,
            num_ranks=4,
            checker="pipeline:check_schedule",
        ),
        Exercise(
            name="05-chunks",
            notebook="05-pipelines",
            function="my_chunks",
            title="Chunks of a prompt that get dearer",
            difficulty="medium",
            minutes=20,
            num_ranks=0,
            checker="chunks:check_chunks",
        ),
        Exercise(
            name="05-admit",
            notebook="05-pipelines",
            function="my_admit",
            title="Admission to a decoding ring",
            difficulty="hard",
            minutes=30,
            num_ranks=0,
            checker="admission:check_admit",
        ),
        Exercise(
            name="07-score",
            notebook="07-topology-and-advisor",
            function="my_score",
            title="A score for layouts",
            difficulty="hard",
            minutes=30,
            num_ranks=0,
            checker="topology:check_score",
            allowed=("tplab.topology.place", "tplab.models.ModelSpec"),
        ),
        Exercise(
            name="07-place",
            notebook="07-topology-and-advisor",
            function="my_place",
            title="Two groups of two GPUs",
            difficulty="medium",
            minutes=20,
            num_ranks=0,
            checker="placement:check_place",
        ),
        Exercise(
            name="08-argmax",
            notebook="08-capstone",
            function="my_argmax",
            title="The likeliest token, from shards of the vocabulary",
            difficulty="medium",
            minutes=20,
            num_ranks=4,
            checker="argmax:check_argmax",
        ),
        Exercise(
            name="08-repair",
            notebook="08-capstone",
            function="my_decoder",
            title="Three bugs in a decoder",
            difficulty="hard",
            minutes=40,
            num_ranks=4,
            checker="repair:check_repair",
        ),
        Exercise(
            name="09-exchange",
            notebook="09-hang-clinic",
            function="my_exchange",
            title="Two ranks swap tensors of unknown length",
            difficulty="medium",
            minutes=15,
            num_ranks=2,
            checker="exchange:check_exchange",
        ),
    )
}
"""Exercise name -> exercise, in the order of the notebooks."""
