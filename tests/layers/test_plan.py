"""The plan of a block: executed on lists of numpy arrays, one per rank, and counted by hand.

The numpy block follows only what the plan says (layouts and conversions); a plan that asked for too little, or for the
wrong thing, would give another result than the unsharded block.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.layers.plan import CANONICAL, CHOICES, MATRICES, BlockPlan, plan_block

LLAMA_8B = {"hidden": 4096, "intermediate": 14336, "num_heads": 32, "num_kv_heads": 8}
ALL = list(itertools.product(CHOICES, repeat=4))
MIB = 1 << 20


def llama(*choices: str, tokens: int = 4096, n: int = 4) -> BlockPlan:
    return plan_block(choices, **LLAMA_8B, tokens=tokens, itemsize=2, n=n)


class Ranks:
    """A block of real arrays on n ranks; each activation is a list with one array per rank."""

    def __init__(self, plan: BlockPlan, seed: int = 0) -> None:
        self.plan, self.n = plan, plan.n
        heads, kv, d = plan.num_heads, plan.num_kv_heads, plan.head_dim
        rng = np.random.default_rng(seed)
        shape = {
            "qkv": (plan.hidden, (heads + 2 * kv) * d),
            "out": (heads * d, plan.hidden),
            "up": (plan.hidden, 2 * plan.intermediate),
            "down": (plan.intermediate, plan.hidden),
        }
        self.weight = {name: rng.standard_normal(size) / size[0] ** 0.5 for name, size in shape.items()}
        self.bias = {name: rng.standard_normal(size[1]) for name, size in shape.items()}
        self.x = rng.standard_normal((plan.tokens, plan.hidden))
        self.counted: dict[str, int] = {}

    def features(self, name: str, rank: int) -> np.ndarray:
        """What a rank holds of ``name``'s split output."""
        plan, n = self.plan, self.n
        if name in ("qkv", "attention"):
            mine = np.array_split(np.arange(plan.num_heads), n)[rank]
            queries = [head * plan.head_dim + i for head in mine for i in range(plan.head_dim)]
            if name == "attention":
                return np.array(queries)
            group = plan.num_heads // plan.num_kv_heads
            shared = sorted({head // group for head in mine})
            keys = [(plan.num_heads + head) * plan.head_dim + i for head in shared for i in range(plan.head_dim)]
            return np.array(queries + keys + [index + plan.num_kv_heads * plan.head_dim for index in keys])
        if name == "up":
            mine = np.array_split(np.arange(plan.intermediate), n)[rank]
            return np.concatenate([mine, plan.intermediate + mine])
        return np.array_split(np.arange(plan.intermediate if name == "activation" else plan.hidden), n)[rank]

    def convert(self, conversion: str | None, held: list[np.ndarray], maker: str) -> list[np.ndarray]:
        if conversion in (None, "slice"):
            return [a if conversion is None else a[:, self.features(maker, r)] for r, a in enumerate(held)]
        if conversion == "all-gather":
            whole = np.empty((self.plan.tokens, sum(array.shape[1] for array in held)))
            for rank, array in enumerate(held):
                whole[:, self.features(maker, rank)] = array
            size = whole.size
        else:
            whole = np.sum(held, axis=0)
            size = whole.size
        result = [whole] * self.n
        if conversion == "reduce-scatter":
            result = [whole[:, self.features(maker, rank)] for rank in range(self.n)]
            size = sum(part.size for part in result)
        self.counted[conversion] = self.counted.get(conversion, 0) + size * self.plan.itemsize
        return result

    def matmul(self, name: str, held: list[np.ndarray], maker: str) -> tuple[list[np.ndarray], list[int]]:
        choice, weight, bias = self.plan.choices[name], self.weight[name], self.bias[name]
        out, sizes = [], []
        for rank, array in enumerate(held):
            w, b = weight, bias
            if choice == "column" and self.n > 1:
                mine = self.features(name, rank)
                w, b = weight[:, mine], bias[mine]
            elif choice == "row" and self.n > 1:
                w, b = weight[self.features(maker, rank)], bias * (rank == 0)  # once, not on every rank
            out.append(array @ w + b)
            sizes.append(w.size)
        return out, sizes

    def attention(self, rank: int, qkv: np.ndarray, split: bool) -> np.ndarray:
        plan, d = self.plan, self.plan.head_dim
        group = plan.num_heads // plan.num_kv_heads
        heads = np.array_split(np.arange(plan.num_heads), self.n)[rank] if split else np.arange(plan.num_heads)
        shared = sorted({head // group for head in heads})
        q, k, v = np.split(qkv, [len(heads) * d, (len(heads) + len(shared)) * d], axis=1)
        out = []
        for i, head in enumerate(heads):
            j = shared.index(head // group)
            scores = q[:, i * d : (i + 1) * d] @ k[:, j * d : (j + 1) * d].T
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out.append(weights / weights.sum(axis=1, keepdims=True) @ v[:, j * d : (j + 1) * d])
        return np.concatenate(out, axis=1)

    def run(self) -> list[np.ndarray]:
        residual = held = [self.x] * self.n
        maker = "x"
        for step in self.plan.steps:
            held = self.convert(step.conversion, held, maker)
            if step.choice is not None:
                held, sizes = self.matmul(step.name, held, maker)
                assert step.weight_bytes == max(sizes) * self.plan.itemsize, step.name
            elif step.name == "attention":
                held = [self.attention(r, qkv, step.input_layout == "split") for r, qkv in enumerate(held)]
            elif step.name == "activation":
                halves = [np.split(array, 2, axis=1) for array in held]
                held = [gate / (1 + np.exp(-gate)) * up for gate, up in halves]
            else:
                held = residual = [x + y for x, y in zip(residual, held, strict=True)]
                if "norm" in step.name:
                    held = [x / np.sqrt((x**2).mean(axis=1, keepdims=True)) for x in held]
            assert step.activation_bytes == max(array.size for array in held) * self.plan.itemsize, step.name
            maker = step.name
        return held


def run_both(choices: tuple[str, ...], n: int, heads: int, kv: int, tokens: int, seed: int = 0) -> Ranks:
    sizes = {"hidden": 24, "intermediate": 48, "num_heads": heads, "num_kv_heads": kv, "head_dim": 2}
    ranks = Ranks(plan_block(choices, **sizes, tokens=tokens, itemsize=8, n=n), seed)
    alone = Ranks(plan_block(choices, **sizes, tokens=tokens, itemsize=8, n=1), seed)
    (expected,) = alone.run()
    for got in ranks.run():
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
    assert not alone.counted
    return ranks


@pytest.mark.parametrize("choices", ALL, ids="-".join)
def test_every_choice_computes_the_same_block(choices: tuple[str, ...]) -> None:
    for n, heads, kv in ((2, 8, 2), (3, 6, 2), (4, 8, 1)):  # divides; straddles; copies
        ranks = run_both(choices, n, heads, kv, tokens=3)
        plan = ranks.plan
        assert sum(ranks.counted.values()) == plan.payload_bytes
        assert set(ranks.counted) == set(plan.collectives)
        assert all(bool(step.why) == bool(step.conversion) for step in plan.steps)
        assert plan.steps[-1].output_layout == "replicated"  # the next block's input


@settings(max_examples=60, deadline=None)
@given(
    choices=st.tuples(*[st.sampled_from(CHOICES)] * 4),
    n=st.sampled_from([1, 2, 3, 4, 6]),
    kv=st.sampled_from([1, 2, 3, 4, 6, 12]),
    tokens=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_any_ranks_heads_and_tokens(choices: tuple[str, ...], n: int, kv: int, tokens: int, seed: int) -> None:
    run_both(choices, n, 12, kv, tokens, seed)


@pytest.mark.parametrize("choices", ALL, ids="-".join)
def test_one_rank_needs_no_collective(choices: tuple[str, ...]) -> None:
    plan = llama(*choices, n=1)
    assert plan.summary == "no collectives"
    assert plan.sent_bytes == plan.time_us(10, 1) == 0
    assert {step.output_layout for step in plan.steps} == {"replicated"}


def test_the_canonical_plan_has_two_all_reduces_of_one_activation() -> None:
    plan = llama(*CANONICAL.values())
    assert plan.is_canonical
    assert plan.collectives == {"all-reduce": 2}
    assert [step.name for step in plan.forced] == ["add + norm", "add"]
    assert plan.payload_bytes == 2 * 4096 * 4096 * 2  # 2 of tokens · hidden · 2 bytes
    assert plan.sent_bytes == 2 * 3 / 4 * 64 * MIB
    weights = 4096 * 6144 + 4096 * 4096 + 4096 * 28672 + 14336 * 4096
    assert plan.weight_bytes == weights * 2 // 4
    assert plan.flops == 2 * 4096 * weights // 4
    assert plan.kv_bytes_per_token == 2 * 2 * 128 * 2  # keys and values of 2 of 8 heads
    assert plan.time_us(3, 100) == pytest.approx(2 * (6 * 3 + 1.5 * 32 * MIB / 100e3))


def test_column_everywhere_gathers_before_each_consumer() -> None:
    plan = llama(*["column"] * 4)
    assert [(step.name, step.collective) for step in plan.forced] == [
        ("out", "all-gather"),
        ("add + norm", "all-gather"),
        ("down", "all-gather"),
        ("add", "all-gather"),
    ]
    assert [step.payload_bytes for step in plan.forced] == [32 * MIB, 32 * MIB, 112 * MIB, 32 * MIB]
    assert plan.sent_bytes == 3 / 4 * 208 * MIB


def test_row_everywhere_slices_then_sums() -> None:
    plan = llama(*["row"] * 4)
    assert [step.conversion for step in plan.steps] == [
        *("slice", "reduce-scatter", None, "all-reduce"),
        *("slice", "reduce-scatter", None, "all-reduce"),
    ]
    assert [step.payload_bytes for step in plan.forced] == [48 * MIB, 32 * MIB, 224 * MIB, 32 * MIB]
    assert plan.sent_bytes == (3 / 4 * (48 + 224) + 3 / 2 * 64) * MIB


def test_replicated_everywhere_is_silent_and_as_heavy_as_one_rank() -> None:
    plan, alone = llama(*["replicated"] * 4), llama(*["replicated"] * 4, n=1)
    assert plan.summary == "no collectives"
    assert (plan.weight_bytes, plan.flops) == (alone.weight_bytes, alone.flops)
    assert plan.kv_heads_per_rank == 8


def test_replicated_then_row_costs_a_slice_and_an_all_reduce() -> None:
    plan = llama("replicated", "row", "column", "row")
    assert [step.conversion for step in plan.steps[:4]] == [None, None, "slice", "all-reduce"]
    assert plan.sent_bytes == llama(*CANONICAL.values()).sent_bytes
    assert plan.kv_heads_per_rank == 8  # attention ran on every head before the slice


def test_every_other_full_split_sends_more_or_calls_more() -> None:
    best = llama(*CANONICAL.values())
    for choices in itertools.product(("column", "row"), repeat=4):
        plan = llama(*choices)
        assert plan.is_canonical or (plan.sent_bytes, plan.num_collectives) > (best.sent_bytes, 2), choices


def test_column_twice_in_attention_sends_as_much_as_column_then_row() -> None:
    """As wide between the two matrices as after them, so two gathers weigh one sum. Not so in the MLP."""
    plan, best = llama("column", "column", "column", "row"), llama(*CANONICAL.values())
    assert (plan.sent_bytes, plan.num_collectives) == (best.sent_bytes, 3)
    assert llama("column", "row", "column", "column").sent_bytes == best.sent_bytes * (2 + 3.5 + 1) / 4


def test_key_value_heads_are_copied_where_they_do_not_divide() -> None:
    sizes = {"hidden": 64, "intermediate": 64, "num_heads": 8, "tokens": 1, "itemsize": 2, "n": 4}
    plan = plan_block(CANONICAL, **sizes, num_kv_heads=1)
    assert plan.kv_heads_per_rank == 1
    assert plan.steps[0].weight_bytes == 64 * (2 + 2 * 1) * 8 * 2
    # By row: sums per head would be 8 + 2·4 heads wide, half price; the whole sum 8 + 2 heads, full price.
    step = plan_block(["row", "row", "column", "row"], **sizes, num_kv_heads=1).steps[1]
    assert (step.collective, step.payload_bytes) == ("reduce-scatter", 16 * 8 * 2)
    # 8 ranks, one query head each: 8 + 2·8 heads cost more than the whole sum twice.
    step = plan_block(["row", "row", "column", "row"], **sizes | {"n": 8}, num_kv_heads=1).steps[1]
    assert (step.collective, step.payload_bytes) == ("all-reduce", 10 * 8 * 2)
    assert "key-value heads copied" in step.why


def test_sizes_must_divide_only_where_they_are_split() -> None:
    with pytest.raises(ValueError, match=r"num_heads=32 does not divide by n=3 .*qkv split by column.*n=1, 2, 4"):
        llama(*CANONICAL.values(), n=3)
    with pytest.raises(ValueError, match="hidden=4096 does not divide by n=3"):
        llama("replicated", "column", "replicated", "replicated", n=3)
    with pytest.raises(ValueError, match=r"intermediate=14336 does not divide by n=6 .*down"):
        llama("replicated", "replicated", "replicated", "row", n=6)
    assert llama(*["replicated"] * 4, n=3).summary == "no collectives"
    # Heads that cannot be split: the partial sum becomes a whole one.
    plan = plan_block(
        ["row", "column", "row", "column"],
        **{"hidden": 12, "intermediate": 10, "num_heads": 2, "num_kv_heads": 2, "tokens": 1, "itemsize": 4, "n": 3},
    )
    assert plan.collectives == {"all-reduce": 2, "all-gather": 2}
    assert "heads do not divide" in plan.steps[1].why


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="out must be one of column, row, replicated; got 'diagonal'"):
        llama("column", "diagonal", "column", "row")
    for choices in (["column"] * 3, "column", {"qkv": "column"}, dict.fromkeys([*MATRICES, "gate"], "row")):
        with pytest.raises(ValueError, match="one of column, row, replicated for each of qkv, out, up, down"):
            plan_block(choices, **LLAMA_8B, tokens=1, itemsize=2, n=2)
    for name, value in (("n", 0), ("tokens", 0), ("hidden", -1), ("itemsize", 1.5)):
        with pytest.raises(ValueError, match=name):
            plan_block(CANONICAL, **LLAMA_8B | {"tokens": 1, "itemsize": 2, "n": 2} | {name: value})
    with pytest.raises(ValueError, match="num_kv_heads must divide num_heads=32; got 5"):
        plan_block(CANONICAL, **LLAMA_8B | {"num_kv_heads": 5}, tokens=1, itemsize=2, n=2)
    with pytest.raises(ValueError, match="num_heads must divide hidden=4097, or head_dim be given; got 32"):
        plan_block(CANONICAL, **LLAMA_8B | {"hidden": 4097}, tokens=1, itemsize=2, n=1)
