"""Tables on real ranks: what they compute, when, and what is said when something is wrong."""

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tplab import Cluster
from tplab.cluster import RankError, RunStopped
from tplab.collectives.emulated_link import EmulatedLink
from tplab.pipeline import (
    Action,
    Costs,
    Op,
    Schedule,
    ScheduleError,
    add_communication,
    build_schedule,
    simulate,
    validate,
)
from tplab.pipeline.job import RunPlan, StageError
from tplab.pipeline.run import MeasuredTrace, run_schedule, run_trace, submit_schedule

WIDTH = 6

CASES = [
    *[("gpipe", p, m, 1) for p, m in [(1, 1), (1, 3), (2, 1), (3, 5), (4, 2)]],
    *[("1f1b", p, m, 1) for p, m in [(1, 2), (2, 1), (2, 5), (3, 2), (4, 7)]],
    *[("interleaved", p, m, v) for p, m, v in [(1, 3, 2), (2, 2, 3), (3, 3, 2), (4, 8, 2)]],
    *[("zb-h1", p, m, 1) for p, m in [(1, 3), (2, 3), (3, 5), (4, 4)]],
    *[("forward-only", p, m, 1) for p, m in [(1, 1), (2, 3), (4, 5)]],
]


def make_block(rank: Any, index: int) -> nn.Module:
    torch.manual_seed(100 + index)
    return nn.Sequential(nn.Linear(WIDTH, 9), nn.Tanh(), nn.Linear(9, WIDTH)).double()


def batch(m: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m)
    x, y = torch.randn(2, 2 * m, WIDTH, generator=generator, dtype=torch.float64)
    return x, y


def computations(schedule: Schedule) -> list[tuple[int, Action]]:
    return sorted((rank, action) for rank, _, action in schedule.actions() if action.op.is_compute)


def ran(trace: MeasuredTrace) -> list[tuple[int, Action]]:
    return sorted((s.rank, Action(s.stage, s.op, s.micro_batch)) for s in trace.spans if s.op.is_compute)


@pytest.mark.parametrize(("name", "p", "m", "v"), CASES)
def test_equals_the_unsplit_model(cluster_of: Callable[[int], Cluster], name: str, p: int, m: int, v: int) -> None:
    schedule = build_schedule(name, p, m, v)
    x, y = batch(m)
    trace = run_schedule(cluster_of(p), schedule, make_block, inputs=x, targets=y, loss=F.mse_loss, timeout=30)
    stages = [make_block(None, index) for index in range(p * v)]
    want = nn.Sequential(*stages)(x)
    assert trace.outputs is not None
    torch.testing.assert_close(torch.cat(trace.outputs), want.detach())
    assert ran(trace) == computations(schedule)
    assert trace.measured
    if name == "forward-only":
        assert trace.losses is None
        assert trace.gradients is None
        return
    loss = F.mse_loss(want, y)
    loss.backward()
    assert trace.losses == pytest.approx(
        [F.mse_loss(a, b).item() for a, b in zip(want.chunk(m), y.chunk(m), strict=True)]
    )
    assert trace.loss == pytest.approx(loss.item())
    assert trace.gradients is not None
    assert list(trace.gradients) == list(range(p * v))
    for index, stage in enumerate(stages):
        assert trace.gradients[index].keys() == dict(stage.named_parameters()).keys()
        for key, weight in stage.named_parameters():
            torch.testing.assert_close(trace.gradients[index][key], weight.grad)


@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "interleaved"])
def test_spans_are_on_one_clock(cluster_of: Callable[[int], Cluster], name: str) -> None:
    """Nothing is computed before what it needs has been, on whatever rank that was."""
    schedule = build_schedule(name, 3, 6, 2 if name == "interleaved" else 1)
    trace = run_schedule(
        cluster_of(3), schedule, Costs(forward_s=4e-3, input_grad_s=2e-3, weight_grad_s=2e-3), timeout=30
    )
    spans = {Action(s.stage, s.op, s.micro_batch): s for s in trace.spans}
    backward = {(a.stage, a.micro_batch): s for a, s in spans.items() if a.op in (Op.B, Op.I)}
    last = schedule.total_stages - 1
    for action, span in spans.items():
        if action.op is Op.F and action.stage:
            assert spans[Action(action.stage - 1, Op.F, action.micro_batch)].end_s <= span.start_s
        if action.op in (Op.B, Op.I) and action.stage < last:
            assert backward[action.stage + 1, action.micro_batch].end_s <= span.start_s
        if action.op.is_send:
            made = Op.F if action.op is Op.SEND_F else None
            producer = spans[action._replace(op=made)] if made else backward[action.stage, action.micro_batch]
            assert producer.end_s <= span.start_s
        assert 0 <= span.start_s <= span.end_s
    for rank in range(3):
        mine = sorted((s.start_s, s.end_s) for s in trace.spans if s.rank == rank and s.op.is_compute)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(mine))


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb-h1", "forward-only"])
def test_simulation_with_measured_times_predicts_the_run(cluster_of: Callable[[int], Cluster], name: str) -> None:
    """What the simulation leaves out is the machine's: messages and the turns of ranks on few cores."""
    schedule = build_schedule(name, 3, 5)
    costs = Costs(forward_s=[0.01, 0.015, 0.02], input_grad_s=0.01, weight_grad_s=0.01)
    trace = run_schedule(cluster_of(3), schedule, costs, timeout=30)
    took = {(s.stage, s.op, s.micro_batch): s.end_s - s.start_s for s in trace.spans}

    def seconds(*ops: tuple[Op, float]) -> Callable[[int, int], float]:
        return lambda stage, mb: sum(took.get((stage, op, mb), 0.0) * share for op, share in ops)

    predicted = simulate(
        schedule,
        Costs(
            forward_s=seconds((Op.F, 1.0)),
            input_grad_s=seconds((Op.B, 0.5), (Op.I, 1.0)),
            weight_grad_s=seconds((Op.B, 0.5), (Op.W, 1.0)),
        ),
    )
    ideal = simulate(schedule, costs)
    assert ideal.makespan_s <= predicted.makespan_s <= trace.makespan_s * (1 + 1e-9)
    assert trace.makespan_s < 1.5 * predicted.makespan_s
    assert trace.peak_activations_per_rank == ideal.peak_activations_per_rank


def test_times_grow_with_the_declared_ones(cluster_of: Callable[[int], Cluster]) -> None:
    schedule = build_schedule("forward-only", 2, 4)
    short, long = (
        run_schedule(cluster_of(2), schedule, Costs(forward_s=seconds), timeout=30) for seconds in (0.005, 0.03)
    )
    assert 0.02 < short.makespan_s < long.makespan_s
    assert long.makespan_s > 5 * 0.03
    assert "emulated compute" in long.badge
    assert set(long.frame()["compute"]) == {"emulated"}


def test_emulated_links_are_those_that_the_costs_declare(cluster_of: Callable[[int], Cluster]) -> None:
    schedule = build_schedule("1f1b", 2, 3)
    costs = Costs(
        forward_s=0.01, input_grad_s=0.005, weight_grad_s=0.005, hop_s=0.02, bandwidth_Bps=1e8, message_bytes=1e6
    )
    trace = run_schedule(cluster_of(2), schedule, costs, timeout=30)
    ideal = simulate(schedule, costs)
    assert "emulated link 20,000 us, 0.1 GB/s" in trace.badge
    assert ideal.makespan_s <= trace.makespan_s < 1.5 * ideal.makespan_s
    sends = [s for s in trace.spans if s.op.is_send]
    assert len(sends) == 6
    assert all(s.end_s - s.start_s == pytest.approx(0.03, abs=1e-4) for s in sends)
    plain = run_schedule(cluster_of(2), schedule, replace(costs, hop_s=0.0, bandwidth_Bps=float("inf")), timeout=30)
    assert plain.makespan_s < trace.makespan_s - 0.05


def test_emulated_links_with_real_modules(cluster_of: Callable[[int], Cluster]) -> None:
    x, y = batch(3)
    options: dict[str, Any] = {"inputs": x, "targets": y, "loss": F.mse_loss, "timeout": 30}
    schedule = build_schedule("1f1b", 2, 3)
    real = run_schedule(cluster_of(2), schedule, make_block, **options)
    slow = run_schedule(
        cluster_of(2), schedule, make_block, links=EmulatedLink(latency_us=2e4, bandwidth_GBps=1), **options
    )
    assert slow.makespan_s > 0.06  # F0 out, B0 back, and the last of both
    assert slow.losses == real.losses
    assert "emulated link" in slow.badge
    assert "emulated" not in real.badge


@pytest.mark.parametrize(("name", "p", "v"), [("1f1b", 2, 1), ("zb-h1", 3, 1), ("interleaved", 2, 2)])
def test_messages_far_above_the_socket_buffers(cluster_of: Callable[[int], Cluster], name: str, p: int, v: int) -> None:
    """A send that waited for its receive would wait for ever where two ranks send to each other."""
    schedule = build_schedule(name, p, 4, v)
    costs = Costs(forward_s=1e-3, input_grad_s=1e-3, weight_grad_s=1e-3, message_bytes=8 << 20)
    trace = run_schedule(cluster_of(p), schedule, costs, timeout=60)
    assert ran(trace) == computations(schedule)


def test_a_table_that_blocking_sends_would_hang_is_refused_and_without_its_messages_runs(
    cluster_of: Callable[[int], Cluster],
) -> None:
    rows = (
        "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1",
        "1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1",
    )
    table = Schedule.from_text("\n".join(rows))
    with pytest.raises(ScheduleError, match="blocking sends"):
        run_schedule(cluster_of(2), table, Costs())
    computed = Schedule.from_text("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1")
    costs = Costs(forward_s=1e-3, input_grad_s=1e-3, weight_grad_s=1e-3, message_bytes=4 << 20)
    assert ran(run_schedule(cluster_of(2), computed, costs, timeout=30)) == computations(computed)


@st.composite
def tables(draw: st.DrawFn) -> Schedule:
    """A random order in which everything can run, dealt to its ranks; sometimes with its messages written down and
    receives moved forward."""
    p, m = draw(st.integers(2, 3)), draw(st.integers(1, 4))
    v = draw(st.integers(1, 2)) if p == 2 else 1
    training = draw(st.booleans())
    chance = random.Random(draw(st.integers(0, 1 << 30)))
    last, done = p * v - 1, set[Action]()
    rows: list[list[Action]] = [[] for _ in range(p)]
    left = [Action(s, Op.F, i) for s in range(p * v) for i in range(m)]
    if training:
        for stage in range(p * v):
            for i in range(m):
                ops = (Op.I, Op.W) if chance.random() < 0.5 else (Op.B,)
                left += [Action(stage, op, i) for op in ops]

    def ready(a: Action) -> bool:
        s, op, i = a
        if op is Op.F:
            return s == 0 or Action(s - 1, Op.F, i) in done
        if op is Op.W:
            return Action(s, Op.I, i) in done
        after = s == last or Action(s + 1, Op.B, i) in done or Action(s + 1, Op.I, i) in done
        return after and Action(s, Op.F, i) in done

    while left:
        action = chance.choice([a for a in left if ready(a)])
        left.remove(action)
        done.add(action)
        rows[action.stage % p].append(action)
    schedule = Schedule(name="random", num_stages=p, num_micro_batches=m, num_chunks=v, ranks=tuple(map(tuple, rows)))
    if draw(st.booleans()):
        schedule = add_communication(schedule)
        moved = tuple(hoist(row, chance) for row in schedule.ranks)
        schedule = replace(schedule, ranks=moved)
    return schedule


def hoist(row: tuple[Action | None, ...], chance: random.Random) -> tuple[Action | None, ...]:
    """Receives some places earlier, without passing one another."""
    actions = list(row)
    for at in range(1, len(actions)):
        place = at
        while (
            place > 0
            and actions[place].op.is_recv  # type: ignore[union-attr]
            and not actions[place - 1].op.is_recv  # type: ignore[union-attr]
            and chance.random() < 0.6
        ):
            actions[place - 1], actions[place] = actions[place], actions[place - 1]
            place -= 1
    return tuple(actions)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(schedule=tables())
def test_whatever_validate_accepts_runs(cluster_of: Callable[[int], Cluster], schedule: Schedule) -> None:
    validate(schedule)
    x, y = batch(schedule.num_micro_batches)
    trace = run_schedule(
        cluster_of(schedule.num_stages), schedule, make_block, inputs=x, targets=y, loss=F.mse_loss, timeout=20
    )
    assert ran(trace) == computations(schedule)
    stages = [make_block(None, index) for index in range(schedule.total_stages)]
    want = nn.Sequential(*stages)(x)
    assert trace.outputs is not None
    torch.testing.assert_close(torch.cat(trace.outputs), want.detach())
    if schedule.is_inference:
        return
    F.mse_loss(want, y).backward()
    assert trace.gradients is not None
    for index, stage in enumerate(stages):
        for key, weight in stage.named_parameters():
            torch.testing.assert_close(trace.gradients[index][key], weight.grad)


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.table(ids)
        return hidden, ids


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(hidden), ids


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 11)

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.linear(hidden).flatten(0, 1), ids.flatten())


def make_language_model(rank: Any, index: int) -> nn.Module:
    torch.manual_seed(index)
    return (Embedding, Middle, Head)[index]()


@pytest.mark.parametrize("name", ["1f1b", "zb-h1"])
def test_several_tensors_and_token_ids_travel(cluster_of: Callable[[int], Cluster], name: str) -> None:
    """The last stage returns its loss itself; ids get no gradient."""
    ids = torch.randint(0, 11, (6, 4), generator=torch.Generator().manual_seed(1))
    trace = run_schedule(
        cluster_of(3), build_schedule(name, 3, 3), make_language_model, inputs=list(ids.chunk(3)), timeout=30
    )
    stages = [make_language_model(None, index) for index in range(3)]
    loss = stages[2](*stages[1](*stages[0](ids)))
    loss.backward()
    assert trace.loss == pytest.approx(loss.item())
    assert trace.gradients is not None
    for index, stage in enumerate(stages):
        for key, weight in stage.named_parameters():
            torch.testing.assert_close(trace.gradients[index][key], weight.grad)


def test_a_first_stage_without_weights_gets_no_gradients(cluster_of: Callable[[int], Cluster]) -> None:
    x, y = batch(3)

    def stage(rank: Any, index: int) -> nn.Module:
        return nn.Tanh() if index == 0 else make_block(rank, index)

    trace = run_schedule(
        cluster_of(2), build_schedule("1f1b", 2, 3), stage, inputs=x, targets=y, loss=F.mse_loss, timeout=30
    )
    assert trace.gradients is not None
    assert trace.gradients[0] == {}
    assert len(trace.gradients[1]) == 4


def test_inputs_made_on_the_rank_and_numbers_of_micro_batches(cluster_of: Callable[[int], Cluster]) -> None:
    class Stamp(nn.Module):
        def forward(self, x: torch.Tensor, micro_batch: int) -> torch.Tensor:
            return x * 10 + micro_batch

    trace = run_schedule(
        cluster_of(2),
        build_schedule("forward-only", 2, 3),
        lambda rank, index: Stamp(),
        inputs=lambda rank, micro_batch: torch.tensor([float(rank.index)]),
        timeout=30,
    )
    assert trace.outputs is not None
    assert [y.item() for y in trace.outputs] == [0.0, 11.0, 22.0]


def test_weights_stay_on_the_rank_and_gradients_start_from_none(cluster_of: Callable[[int], Cluster]) -> None:
    def stage(rank: Any, index: int) -> nn.Module:
        if "stage" not in rank.store:
            rank.store["stage"] = make_block(rank, index)
        return rank.store["stage"]

    x, y = batch(2)
    cluster_of(2).run(lambda rank: rank.store.pop("stage", None), timeout=30)
    options: dict[str, Any] = {"inputs": x, "targets": y, "loss": F.mse_loss, "timeout": 30}
    first, second = (
        run_schedule(cluster_of(2), build_schedule("gpipe", 2, 2), stage, warm_ups=turn, **options) for turn in (0, 2)
    )
    assert first.gradients is not None
    assert second.gradients is not None
    torch.testing.assert_close(first.gradients[1]["0.weight"], second.gradients[1]["0.weight"])
    assert len(second.spans) == len(first.spans)


# What is refused in the kernel, before a rank starts.


class NoRanks:
    """A cluster that must not be asked to run anything."""

    num_ranks = 2
    backend = "gloo"

    def submit(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a rank was started")


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (build_schedule("1f1b", 3, 3), {}, r"num_stages=3 ranks, but the cluster has 2 ranks: take Cluster\(3\)"),
        (Schedule.from_text("0F0\n1B0"), {}, r"1F0 is missing"),
        (Schedule.from_text("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0"), {}, "circular wait"),
        (build_schedule("1f1b", 2, 2), {"stage": 3}, "stage must be a function of rank and stage index, or Costs"),
        (build_schedule("1f1b", 2, 2), {"stage": make_block}, "inputs must be given"),
        (build_schedule("1f1b", 2, 2), {"loss": F.mse_loss}, "loss must be left out where stage is Costs"),
        (build_schedule("1f1b", 2, 2), {"stage": Costs(overlap=False)}, r"overlap=False.*simulated only"),
        (build_schedule("1f1b", 2, 2), {"warm_ups": -1}, "warm_ups must be a whole number of at least 0; got -1"),
        (build_schedule("1f1b", 2, 2), {"stage": Costs(forward_s=[1.0])}, "forward_s must be"),
    ],
)
def test_refused_before_any_rank_starts(schedule: Schedule, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_schedule(NoRanks(), schedule, **({"stage": Costs()} | options))  # type: ignore[arg-type]


def test_emulated_links_need_gloo() -> None:
    class OnGpus(NoRanks):
        backend = "nccl"

    with pytest.raises(ValueError, match=r"backend must be gloo for emulated links, .*got 'nccl'"):
        run_schedule(OnGpus(), build_schedule("1f1b", 2, 2), Costs(hop_s=1.0))  # type: ignore[arg-type]


# What goes wrong on the ranks.


def fails_with(cluster: Cluster, message: str, stage: Any = make_block, **options: Any) -> StageError:
    """The error of a run of 1F1B on two ranks; afterwards the cluster works."""
    x, y = batch(4)
    given: dict[str, Any] = {"inputs": x, "targets": y, "loss": F.mse_loss, "timeout": 30} | options
    with pytest.raises(RankError, match=message) as raised:
        run_schedule(cluster, build_schedule("1f1b", 2, 4), stage, **given)
    trace = run_schedule(cluster, build_schedule("1f1b", 2, 4), make_block, inputs=x, targets=y, loss=F.mse_loss)
    assert trace.loss is not None
    return raised.value.__cause__  # type: ignore[return-value]


def test_a_stage_that_cannot_be_made(fragile: Cluster) -> None:
    def stage(rank: Any, index: int) -> nn.Module:
        if index == 1:
            raise OSError("no weights here")
        return make_block(rank, index)

    cause = fails_with(fragile, "making stage 1 failed: OSError: no weights here", stage)
    assert isinstance(cause, StageError)


def test_a_stage_that_raises_in_the_middle(fragile: Cluster) -> None:
    class Fragile(nn.Module):
        def forward(self, x: torch.Tensor, micro_batch: int) -> torch.Tensor:
            if micro_batch == 2:
                raise ArithmeticError("cannot")
            return x

    def stage(rank: Any, index: int) -> nn.Module:
        return Fragile() if index == 1 else make_block(rank, index)

    began = time.monotonic()
    cause = fails_with(
        fragile, r"stage 1 failed in 1F2 on float64 \(2, 6\) from stage 0: ArithmeticError: cannot", stage
    )
    assert isinstance(cause, StageError)
    assert time.monotonic() - began < 25


def test_stages_that_do_not_fit(fragile: Cluster) -> None:
    def stage(rank: Any, index: int) -> nn.Module:
        return nn.Linear(WIDTH, 5).double() if index == 0 else make_block(rank, index)

    fails_with(fragile, r"stage 1 failed in 1F0 on float64 \(2, 5\) from stage 0: RuntimeError: mat1 and mat2", stage)


def test_stages_of_different_dtype(fragile: Cluster) -> None:
    def stage(rank: Any, index: int) -> nn.Module:
        return make_block(rank, index).float() if index == 1 else make_block(rank, index)

    fails_with(
        fragile,
        r"stage 1 failed in 1F0 on float64 \(2, 6\) from stage 0: RuntimeError: .* \(its weights are float32\)",
        stage,
    )


class Shrinking(nn.Module):
    def forward(self, x: torch.Tensor, micro_batch: int) -> torch.Tensor:
        return x[: 2 if micro_batch < 2 else 1]


def make_shrinking(rank: Any, index: int) -> nn.Module:
    return Shrinking() if index == 0 else make_block(rank, index)


def test_shapes_that_change(fragile: Cluster) -> None:
    message = r"stage 0 made float64 \(1, 6\) of micro-batch 2, but float64 \(2, 6\) before.*dynamic_shapes=True"
    fails_with(fragile, message, make_shrinking)


def test_dynamic_shapes(cluster_of: Callable[[int], Cluster]) -> None:
    x, y = batch(4)
    targets = [part[: 2 if i < 2 else 1] for i, part in enumerate(y.chunk(4))]
    trace = run_schedule(
        cluster_of(2),
        build_schedule("1f1b", 2, 4),
        make_shrinking,
        inputs=x,
        targets=targets,
        loss=F.mse_loss,
        dynamic_shapes=True,
        timeout=30,
    )
    assert trace.outputs is not None
    assert [len(one) for one in trace.outputs] == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": torch.zeros(7, WIDTH)}, r"inputs of shape \(7, 6\) cannot be split into 4 micro-batches"),
        ({"inputs": [torch.zeros(2, WIDTH)] * 3}, "inputs must have one for each of the 4 micro-batches; got 3"),
        (
            {"loss": F.mse_loss, "targets": [torch.zeros(2)] * 3},
            "targets must have one for each of the 4 micro-batches",
        ),
        ({"loss": lambda a, b: a - b}, "loss must return one number"),
        ({"loss": None, "targets": None}, "loss must return one number"),
        ({"inputs": lambda rank, micro_batch: [1.0]}, "a tensor or a tuple of tensors; got float"),
    ],
)
def test_inputs_that_do_not_fit(fragile: Cluster, options: dict[str, Any], message: str) -> None:
    fails_with(fragile, message, **options)


def test_stop_keeps_what_ran_and_leaves_the_cluster_usable(fragile: Cluster) -> None:
    schedule = build_schedule("1f1b", 2, 200)
    plan = RunPlan(schedule=schedule, stage=Costs(forward_s=0.02, input_grad_s=0.01, weight_grad_s=0.01))
    progress: list[dict[str, Any]] = []
    run = submit_schedule(fragile, plan, on_report=lambda report: progress.append(report.fields), timeout=60)
    deadline = time.monotonic() + 30
    while sum("records" in fields for fields in progress) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    run.stop()
    with pytest.raises(RunStopped):
        run.result(timeout=30)
    trace = run_trace(plan, run.reports, fragile.provenance)
    assert 0 < len(ran(trace)) < schedule.num_actions
    assert set(ran(trace)) <= set(computations(schedule))
    told = [fields["done"] for fields in progress if fields.get("phase") == "run"]
    assert told == sorted(told)
    assert told[-1] > 0
    short = run_schedule(fragile, build_schedule("1f1b", 2, 2), Costs(forward_s=1e-3), timeout=30)
    assert len(ran(short)) == 8


def test_the_trace_exports(cluster_of: Callable[[int], Cluster]) -> None:
    trace = run_schedule(cluster_of(2), build_schedule("zb-h1", 2, 3), Costs(forward_s=1e-3), timeout=30)
    frame = trace.frame()
    assert set(frame["kind"]) == {"forward", "input gradient", "weight gradient", "point-to-point"}
    assert set(frame["backend"]) == {"gloo"}
    assert (frame["end_ms"] >= frame["start_ms"]).all()
    assert trace.perfetto()["otherData"]["badge"] == trace.badge
