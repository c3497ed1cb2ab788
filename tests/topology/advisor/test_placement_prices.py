"""Predictions for GPUs that somebody else chose, and the table of all of them."""

import random

import pytest

from tplab.models.shards import Layout
from tplab.topology import EnginePolicy, Machine, ModelSpec, Workload, place, placement_of, predict
from tplab.topology.advisor.group_links import links_of
from tplab.topology.advisor.placement_prices import placement_prices

LOAD = Workload(input_length=1024, output_length=256, concurrency=16, engine=EnginePolicy(name="vllm"))
MODEL = ModelSpec.from_config("llama-3.1-8b")
CASES = [
    (Machine.preset("dgx-1"), (2, 2, 2)),
    (Machine.preset("a100-pairs", gpus=8), (4, 2, 1)),
    (Machine.preset("h100", nodes=2), (4, 2, 2)),
    (Machine.preset("dgx-1", nodes=2), (8, 2, 1)),
    (Machine.preset("a100-pcie", gpus=3), (1, 3, 1)),
]


def shuffled(machine, layout, seed):
    tp, pp, replicas = layout
    gpus = iter(random.Random(seed).sample(range(machine.num_gpus), tp * pp * replicas))
    return placement_of(machine, [[[next(gpus) for _ in range(tp)] for _ in range(pp)] for _ in range(replicas)])


@pytest.mark.parametrize(("machine", "layout"), CASES, ids=[machine.name for machine, _ in CASES])
def test_the_table_has_what_predict_says_of_any_choice(machine, layout):
    tp, pp, replicas = layout
    table = placement_prices(MODEL, machine, LOAD, Layout.of(MODEL, *layout)).rows
    for seed in range(12):
        placed = shuffled(machine, layout, seed)
        made, row = (
            predict(MODEL, machine, LOAD, tp, pp, replicas=replicas, placement=placed),
            table[links_of(machine, placed)],
        )
        assert row.tpot_ms == pytest.approx(made.tpot_ms)
        assert row.tokens_per_s == pytest.approx(made.output_tokens_per_s)
        assert row.all_reduce_ms == pytest.approx(made.term_ms("all_reduce"))
        assert row.hops_ms == pytest.approx(made.term_ms("hops"))


@pytest.mark.parametrize(("machine", "layout"), CASES, ids=[machine.name for machine, _ in CASES])
def test_no_choice_beats_the_placement_that_is_found(machine, layout):
    tp, pp, replicas = layout
    best = predict(MODEL, machine, LOAD, tp, pp, replicas=replicas)
    given = predict(MODEL, machine, LOAD, tp, pp, replicas=replicas, placement=place(machine, *layout))
    assert given.tpot_ms == pytest.approx(best.tpot_ms)
    for seed in range(12):
        other = predict(MODEL, machine, LOAD, tp, pp, replicas=replicas, placement=shuffled(machine, layout, seed))
        assert other.tpot_ms >= best.tpot_ms * (1 - 1e-9)


def test_a_group_across_the_sockets_pays_for_it():
    pcie, groups = Machine.preset("a100-pcie"), [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    near = predict(MODEL, pcie, LOAD, 4, 1, replicas=2, placement=placement_of(pcie, groups))
    groups[0][0][3], groups[1][0][3] = 7, 3
    far = predict(MODEL, pcie, LOAD, 4, 1, replicas=2, placement=placement_of(pcie, groups))
    assert far.term_ms("all_reduce") > near.term_ms("all_reduce")
    assert far.term_ms("weights") == pytest.approx(near.term_ms("weights"))


def test_a_group_over_two_nodes_is_the_dearer_the_fewer_gpus_of_it_a_node_has():
    machine = Machine.preset("h100", nodes=2)

    def reduces(*gpus):
        placed = placement_of(machine, [[gpus]])
        return predict(MODEL, machine, LOAD, len(gpus), 1, placement=placed).term_ms("all_reduce")

    inside, even, uneven = reduces(0, 1, 2, 3), reduces(0, 1, 8, 9), reduces(0, 1, 2, 8)
    assert inside < even < uneven
    # A group of whole nodes is what it was: the same as without naming its GPUs.
    whole = predict(MODEL, machine, LOAD, 16, 1)
    assert reduces(*range(16)) == pytest.approx(whole.term_ms("all_reduce"))


def test_a_placement_of_another_layout_or_machine_is_refused():
    dgx = Machine.preset("dgx-1")
    placed = placement_of(dgx, [[[0, 1], [2, 3]]])
    with pytest.raises(ValueError, match=r"placement.*TP 2 × PP 2"):
        predict(MODEL, dgx, LOAD, 4, 1, placement=placed)
    with pytest.raises(ValueError, match="placement"):
        predict(MODEL, Machine.preset("a100-pairs", gpus=4), LOAD, 1, 1, placement=placement_of(dgx, [[[7]]]))


def test_bridges_slower_than_pcie_do_not_join_those_without_one():
    links = ("\tX\tNV1\tPHB\n", "\tNV1\tX\tNV1\n", "\tPHB\tNV1\tX\n")
    text = "\tGPU0\tGPU1\tGPU2\n" + "".join(f"GPU{gpu}{row}" for gpu, row in enumerate(links))
    machine = Machine.from_topo(text, gpu="h100")
    assert not links_of(machine, placement_of(machine, [[[0, 1, 2]]])).direct
    assert links_of(machine, placement_of(machine, [[[0, 1]]])).direct
