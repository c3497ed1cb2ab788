"""All-reduces and hops over random links: what must hold whatever the constants are, and published figures of several
nodes and of PCIe boxes."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.models.shards import Layout
from tplab.topology import EnginePolicy, Machine, ModelSpec, Workload, advise, predict
from tplab.topology.advisor.allreduce import Groups, all_reduce, hop
from tplab.topology.advisor.calibration import AllReduceTimes, Calibration
from tplab.topology.advisor.constants import DEFAULT, FAMILIES, FAMILY_OF
from tplab.topology.advisor.layouts import layout_arrays
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.machine.machine import LINK_KINDS, Link

LLAMA = ModelSpec.from_config("llama-3.1-70b", weight_precision="fp8", kv_precision="fp8")
KERNELS = ("auto", "nccl", "one-shot", "two-shot")
ENGINES = ("vllm", "sglang", "trtllm", "fastertransformer")
SIZES = np.geomspace(1, 1e10, 200)

links = st.builds(
    Link,
    kind=st.sampled_from([kind for kind in LINK_KINDS if kind != "network"]),
    bandwidth_GBps=st.floats(0.5, 1000),
    latency_us=st.floats(0, 5000),
)
networks = st.builds(Link, kind=st.just("network"), bandwidth_GBps=st.floats(0.1, 400), latency_us=st.floats(0, 5000))


def times(link, n, *, nodes=1, network=None, kernel="auto", engine="vllm", nbytes=SIZES, scale=1.0, calibration=None):
    groups = Groups.of(
        [n], [link], direct=[link.is_nvlink], nodes=[nodes], network=network if nodes > 1 else None, scale=scale
    )
    time = all_reduce(
        groups,
        kernel=kernel,
        graph=True,
        custom=DEFAULT.engines[engine].all_reduce,
        constants=DEFAULT,
        calibration=calibration,
    )
    return time(np.asarray(nbytes, dtype=float)[:, None])[:, 0]


draws = given(
    link=links,
    n=st.sampled_from([2, 3, 4, 8, 16]),
    nodes=st.sampled_from([1, 2, 4]),
    network=networks,
    kernel=st.sampled_from(KERNELS),
    engine=st.sampled_from(ENGINES),
    more=st.floats(1, 100),
)


@settings(max_examples=300, deadline=None)
@draws
def test_faster_links_and_shorter_messages_never_take_longer(link, n, nodes, network, kernel, engine, more):
    def of(link=link, network=network):
        return times(link, n * nodes, nodes=nodes, network=network, kernel=kernel, engine=engine)

    here = of()
    assert (here > 0).all()
    assert np.isfinite(here).all()
    assert (np.diff(here) >= 0).all()
    assert (np.diff(np.log(here)) <= np.diff(np.log(SIZES)) + 1e-9).all()  # no jump: twice the bytes, at most twice
    for other in (
        of(replace(link, bandwidth_GBps=link.bandwidth_GBps * more)),
        of(replace(link, latency_us=link.latency_us / more)),
        of(network=replace(network, bandwidth_GBps=network.bandwidth_GBps * more)),
        of(network=replace(network, latency_us=network.latency_us / more)),
    ):
        assert (other <= here * (1 + 1e-9)).all()


@settings(max_examples=200, deadline=None)
@given(link=links, network=networks, kernel=st.sampled_from(("auto", "nccl")), engine=st.sampled_from(ENGINES))
def test_more_ranks_never_take_less(link, network, kernel, engine):
    """Nor more nodes of as many ranks: those that are added have to be waited for. (Over Infinity Fabric each has links
    of its own to every other one, so that more ranks have more of them.)"""
    link = replace(link, kind="nvlink") if link.kind == "xgmi" else link
    inside = [times(link, n, kernel="nccl", engine=engine) for n in range(2, 17)]
    over = [times(link, 8 * N, nodes=N, network=network, kernel=kernel, engine=engine) for N in (1, 2, 3, 4, 8)]
    for made in (inside, over):
        assert all((b >= a * (1 - 1e-9)).all() for a, b in pairwise(made))


@settings(max_examples=100, deadline=None)
@given(link=links, n=st.sampled_from([2, 4, 8]), more=st.floats(0, 5000), kernel=st.sampled_from(KERNELS))
def test_what_a_slow_link_lacks_comes_at_every_step(link, n, more, kernel):
    """From the latency of the links that constants were fitted on: once or twice in engines' kernels, 2(n-1) times
    around a ring."""
    fitted = DEFAULT.links[FAMILY_OF[link.kind]].latency_us
    link = replace(link, latency_us=max(link.latency_us, fitted))
    added = times(replace(link, latency_us=link.latency_us + more), n, kernel=kernel) - times(link, n, kernel=kernel)
    own = link.is_nvlink or (n == 2 and link.kind not in ("host", "emulated"))  # vLLM's: over PCIe, too, between two
    steps = {"one-shot": 1, "two-shot": 2, "auto": 1}.get(kernel, 2 * (n - 1)) if own else 2 * (n - 1)
    assert (added >= steps * more - 1e-6 * (1 + link.latency_us)).all()
    if kernel != "auto":
        assert added == pytest.approx(np.full(len(SIZES), steps * more), rel=1e-6, abs=1e-5 * (1 + link.latency_us))


@settings(max_examples=100, deadline=None)
@given(link=links, network=networks, more=st.floats(1, 100), nbytes=st.floats(1, 1e9))
def test_hops_over_faster_links_never_take_longer(link, network, more, nbytes):
    def hop_us(link):
        family = np.array([FAMILIES.index(FAMILY_OF[link.kind])])
        return hop(family, np.array([link.bandwidth_GBps]), np.array([link.latency_us]), constants=DEFAULT)(nbytes)[0]

    for each in (link, network):
        wide = replace(each, bandwidth_GBps=each.bandwidth_GBps * more)
        assert hop_us(wide) <= hop_us(each)
        assert hop_us(replace(each, latency_us=each.latency_us + more)) == pytest.approx(hop_us(each) + more)


def test_every_kind_of_link_has_constants():
    assert set(FAMILY_OF) == set(LINK_KINDS)
    assert set(FAMILY_OF.values()) == set(FAMILIES) == set(DEFAULT.links)
    assert all(link.declared or link.latency_us > 0 for link in DEFAULT.links.values())


# --- published figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "nbytes", "measured_us", "off"),
    [
        # NCCL issue 1244: 16 H20 on two nodes, NCCL 2.21.5.
        (Machine.preset("h20", nodes=2), 64, 46.3, 0.2),
        # mscclpp (commit 1f5f065, test/deploy/perf_ndmv5.jsonl), two nodes of H100.
        (Machine.preset("h100", nodes=2), 25165824, 212.4, 0.1),
        (Machine.preset("h100", nodes=2), 50331648, 363.4, 0.15),
        (Machine.preset("h100", nodes=2), 3221225472, 15989.0, 0.1),
        # the same, perf_ndmv4.jsonl: two nodes of A100, a 200 Gb/s card each.
        (Machine.preset("a100", nodes=2), 25165824, 311.3, 0.2),
        (Machine.preset("a100", nodes=2), 3221225472, 25565.0, 0.1),
        # ml-engineering (commit 744d01e, network/README.md): four nodes of B200.
        (Machine.preset("b200", nodes=4), 17179869184, 87182.0, 0.1),
        # nccl-tests issue 150: two A100 on two nodes.
        (Machine.preset("a100", gpus=1, nodes=2), 8, 19.9, 0.2),
    ],
)
def test_nccl_over_nodes(machine, nbytes, measured_us, off):
    g = machine.gpus_per_node
    inside = machine.slowest_link(range(g)) or machine.network
    made = times(inside, machine.num_gpus, nodes=machine.nodes, network=machine.network, kernel="nccl", nbytes=[nbytes])
    assert made[0] == pytest.approx(measured_us, rel=off)


@pytest.mark.parametrize(
    ("n", "nbytes", "measured_us"),
    [
        (4, 4096, 13.7),
        (4, 1 << 20, 86.1),
        (4, 32 << 20, 2022.0),
        (8, 4096, 25.6),
        (8, 1 << 20, 131.5),
        (8, 32 << 20, 2493.6),
    ],
)
def test_nccl_on_pcie(n, nbytes, measured_us):
    # AIConfigurator's tables (commit 095f58a), RTX PRO 6000 server, nccl-tests 2.29.2.
    link = Machine.preset("rtx-pro-6000").slowest_link(range(n))
    assert times(link, n, kernel="nccl", nbytes=[nbytes])[0] == pytest.approx(measured_us, rel=0.15)


@pytest.mark.parametrize(("name", "measured_GBps"), [("a100-pairs", 23.7), ("h100-nvl", 48.8)])
def test_a_ring_between_bridged_pairs_uses_each_slot_in_one_direction(name, measured_GBps):
    # Vidur (commit 7d47513), four A100 and H100 NVL with NVLink in pairs: bus bandwidth of the largest messages.
    machine, nbytes = Machine.preset(name), 512 << 20
    workload = Workload(input_length=1024, output_length=256, concurrency=1)
    memories = [LayoutMemory.of(LLAMA, machine.gpu, workload, Layout.of(LLAMA, tp, 1)) for tp in (2, 4)]
    groups = layout_arrays(machine, memories).groups
    assert groups.bridged.tolist() == [False, True]
    made = all_reduce(groups, kernel="nccl", graph=True, custom=None, constants=DEFAULT)(nbytes)[1]
    assert 2 * 3 / 4 * nbytes / made / 1e3 == pytest.approx(measured_GBps, rel=0.05)


@pytest.mark.parametrize(("engine", "measured_us"), [("vllm", 4.7), ("sglang", 4.9), ("trtllm", 6.8)])
def test_two_over_pcie(engine, measured_us):
    # AIConfigurator's tables (commit 095f58a), 1 KiB in a CUDA graph: means of L40S and RTX PRO 6000.
    link = Machine.preset("l40s").link(0, 1)
    assert times(link, 2, engine=engine, nbytes=[1024])[0] == pytest.approx(measured_us, rel=0.15)


@pytest.mark.parametrize("name", ["dgx-1", "a100-pcie", "h100-pcie", "a10", "l4", "l40s", "rtx-pro-6000", "rtx-4090"])
def test_a_ring_over_sockets_is_no_faster_than_inside_one(name):
    machine = Machine.preset(name, gpus=8)
    for nbytes in (4096, 1 << 20, 1 << 28):
        half, whole = (times(machine.slowest_link(range(n)), n, kernel="nccl", nbytes=[nbytes])[0] for n in (4, 8))
        assert whole > half


@pytest.mark.parametrize("requests", [256, 1024, 4096])
def test_eight_l40s_gain_nothing_over_four_with_short_requests(requests):
    # TensorRT-LLM's performance overview, Llama-70B fp8 at 128/128 on L40S: TP 4 -> TP 8 is 0.96 x.
    workload = Workload(input_length=128, output_length=128, concurrency=requests, engine=EnginePolicy(name="trtllm"))
    four, eight = (predict(LLAMA, Machine.preset("l40s"), workload, tp, 1).output_tokens_per_s for tp in (4, 8))
    assert 0.85 < eight / four < 1.02


# --- over nodes -------------------------------------------------------------------------------------------------------


def test_gpt_530b_takes_whole_nodes_for_a_layer():
    """FasterTransformer's best layout of four nodes of A100 at batch 1 was TP 32: half the time of TP 8 × PP 3."""
    model = ModelSpec(
        name="gpt-530b",
        num_layers=105,
        hidden_size=20480,
        intermediate_size=81920,
        num_heads=128,
        num_kv_heads=128,
        head_dim=160,
        vocab_size=51200,
        gated_mlp=False,
    )
    engine = EnginePolicy(name="fastertransformer")
    made = advise(
        model,
        Machine.preset("a100", nodes=4),
        Workload(input_length=20, output_length=8, concurrency=1, engine=engine),
    )
    assert str(made.best.layout) == "TP 32 × PP 1"
    stages = next(option for option in made.options if (option.layout.tp, option.layout.pp) == (8, 3))
    assert made.best.prediction.e2e_ms < 0.65 * stages.prediction.e2e_ms
    assert made.placement.groups == ((tuple(range(32)),),)
    assert any("every all-reduce crosses 4 nodes, over 8 NICs 25 GB/s per GPU" in note for note in made.notes)
    assert len(made.commands["vllm"]) == 4


def test_a_slow_network_keeps_layers_inside_nodes():
    fast = Machine.preset("h100", nodes=2)
    slow = replace(fast, network=replace(fast.network, bandwidth_GBps=1.0, latency_us=2000.0))
    workload = Workload(input_length=1024, output_length=256, concurrency=1, engine=EnginePolicy(name="vllm"))
    at = {machine: predict(LLAMA, machine, workload, 16, 1).term_ms("all_reduce") for machine in (fast, slow)}
    assert at[slow] > at[fast] + 2 * LLAMA.num_layers * 2 * (2.0 - 0.006)
    assert advise(LLAMA, slow, workload).best.layout.tp <= 8


def test_a_links_latency_is_in_the_time_per_token():
    """2 us and 5 ms gave the same."""
    machine = Machine.preset("h100")
    workload = Workload(input_length=1024, output_length=256, concurrency=1, engine=EnginePolicy(name="vllm"))
    link = machine.link(0, 1)
    made = [
        predict(LLAMA, Machine.uniform(machine.gpu, 8, replace(link, latency_us=us)), workload, 8, 1).tpot_ms
        for us in (0.0, 2.0, 20.0, 5000.0)
    ]
    assert made == sorted(made)
    assert made[3] - made[1] == pytest.approx(2 * LLAMA.num_layers * 4.998, rel=0.01)  # one-shot: once each


# --- between measured group sizes -------------------------------------------------------------------------------------


def test_group_sizes_that_were_not_measured_lie_between_those_that_were():
    link, sizes = Machine.preset("h100").link(0, 1), tuple(float(size) for size in 2 ** np.arange(10, 27, 2))

    def factor(n, **measured):
        sweeps = [
            AllReduceTimes(
                num_ranks=int(ranks[1:]),
                nbytes=sizes,
                p50_us=tuple((times_slower * times(link, int(ranks[1:]), kernel="nccl", nbytes=sizes)).tolist()),
            )
            for ranks, times_slower in measured.items()
        ]
        found = Calibration(
            machine="m", device="d", backend="nccl", num_ranks=8, created="2026", versions={}, all_reduce=tuple(sweeps)
        )
        made = times(link, n, kernel="nccl", nbytes=sizes, calibration=found)
        return made / times(link, n, kernel="nccl", nbytes=sizes)

    assert factor(2, n2=2.0, n8=4.0) == pytest.approx(2.0)
    assert factor(4, n2=2.0, n8=4.0) == pytest.approx(2 ** (1 + 1 / 2))  # half way along the logarithm
    assert factor(6, n2=2.0, n8=4.0) == pytest.approx(2 ** (1 + np.log(3) / np.log(4)))
    assert factor(8, n2=2.0, n8=4.0) == pytest.approx(4.0)
    assert factor(4, n8=4.0) == pytest.approx(4.0)
