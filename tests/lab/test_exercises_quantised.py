"""Checkers of notebook 04, against right answers in several forms, an empty answer and planted wrong ones."""

import re
import threading

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tplab.cluster import Cluster
from tplab.collectives.quantised import int8_all_reduce, naive_int8_all_reduce
from tplab.lab.exercises import check_chunk_choice, check_int8_all_reduce

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module", params=[2, 4], ids=lambda n: f"n={n}")
def cluster(request, clusters) -> Cluster:
    return clusters[request.param]


def nothing(rank, x):
    return None


def raises(rank, x):
    raise NotImplementedError("write me")


def int8(rank, x):
    int8_all_reduce(x, rank.group)
    return x


def int8_naive(rank, x):
    naive_int8_all_reduce(x, rank.group)
    return x


def int8_one_scale(rank, x):
    int8_all_reduce(x, rank.group, scale_group=len(x))
    return x


def int8_small_groups(rank, x):
    int8_all_reduce(x, rank.group, scale_group=4)
    return x


def exact(rank, x):
    dist.all_reduce(x, group=rank.group)
    return x


def in_bf16(rank, x):
    y = x.bfloat16()
    dist.all_reduce(y, group=rank.group)
    return y.float()


def int8_owner_keeps_its_own(rank, x):
    before = x.clone()
    int8_all_reduce(x, rank.group)
    lengths = [len(part) for part in x.tensor_split(rank.world_size)]
    start = sum(lengths[: rank.index])
    x[start : start + 1] += before[start].sign() * 1e-4
    return x


def rounded(x_CG, to_int8=torch.round):
    """Rows of 50 numbers in int8, with a scale each."""
    scale = (x_CG.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-20)
    return to_int8(x_CG / scale).to(torch.int8), scale


def two_shot(rank, x, to_int8=torch.round):
    """By all-to-all and all-gather, as one would write it: right, but for another ``to_int8``."""
    n = rank.world_size
    rows = x.view(n, -1, 50 if x.numel() % 64 else 64)
    numbers, scales = rounded(rows, to_int8)
    got, got_scales = torch.empty_like(numbers), torch.empty_like(scales)
    dist.all_to_all_single(got, numbers, group=rank.group)
    dist.all_to_all_single(got_scales, scales, group=rank.group)
    numbers, scales = rounded((got.float() * got_scales).sum(0), to_int8)
    all_numbers, all_scales = torch.empty_like(got), torch.empty_like(got_scales)
    dist.all_gather_into_tensor(all_numbers.view(-1), numbers.view(-1), group=rank.group)
    dist.all_gather_into_tensor(all_scales.view(-1), scales.view(-1), group=rank.group)
    return (all_numbers.float() * all_scales).flatten()


def int8_as_numpy(rank, x):
    return int8(rank, x).cpu().numpy()


def int8_cut_off(rank, x):
    return two_shot(rank, x, torch.trunc)


def int8_rounded_down(rank, x):
    return two_shot(rank, x, torch.floor)


def exact_in_a_thread(rank, x):
    """The whole sum where a counter of one thread does not see it, and half of the bytes for show."""
    y = x.clone()
    thread = threading.Thread(target=dist.all_reduce, args=(y,), kwargs={"group": rank.group})
    thread.start()
    thread.join()
    dist.all_reduce(torch.zeros(x.numel(), dtype=torch.int8, device=x.device), group=rank.group)
    return y


def exact_through_the_store(rank, x):
    store = dist.distributed_c10d._get_default_store()
    key = f"cheat {x.numel()} {rank.store.setdefault('tries', 0)}"
    rank.store["tries"] += 1
    store.set(f"{key} {rank.index}", x.cpu().numpy().tobytes())
    parts = [np.frombuffer(store.get(f"{key} {r}"), dtype=np.float32) for r in range(rank.world_size)]
    dist.all_reduce(torch.zeros(x.numel(), dtype=torch.int8, device=x.device), group=rank.group)
    return torch.from_numpy(np.sum(parts, axis=0)).to(x.device)


def exact_and_the_count_wiped(rank, x):
    """Finds the counter's records and throws them away."""
    import gc

    dist.all_reduce(x, group=rank.group)
    for thing in gc.get_objects():
        if isinstance(thing, list) and thing and type(thing[0]).__name__ == "CommRecord":
            thing.clear()
    return x


def addends_made_again(rank, x):
    """No byte: what the others hold, from the seeds that it had when they were fixed."""
    length = x.numel()
    total = torch.zeros(length)
    for index in range(rank.world_size):
        generator = torch.Generator().manual_seed(100 * length + index)
        addend = torch.randn(length, generator=generator)
        addend[: length // 8] *= 100
        total += addend
    return total.to(x.device)


def own_times_n(rank, x):
    return x * rank.world_size


@pytest.mark.parametrize("right", [int8, two_shot, int8_as_numpy])
def test_int8_right(cluster: Cluster, right) -> None:
    verdict = check_int8_all_reduce(cluster, right)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (int8_naive, "You add up int8 numbers.*wrap around"),
        (int8_one_scale, "one scale"),
        (int8_small_groups, "at most 0.55"),
        (int8_cut_off, r"off to the same side.*\.round"),
        (int8_rounded_down, r"off to the same side.*\.round"),
        (exact, "at most 0.55"),
        (in_bf16, "at most 0.55"),
        (exact_in_a_thread, "at most 0.55"),
        (exact_and_the_count_wiped, "at most 0.55"),
        (exact_through_the_store, "more exact than int8 messages"),
        (addends_made_again, "That is more than rounding"),
        (own_times_n, "sum of all ranks' numbers"),
        (int8_owner_keeps_its_own, "different bits"),
        (nothing, "must return 4,096 numbers; it returned None"),
        (raises, "line 2 of raises: NotImplementedError: write me"),
    ],
)
def test_int8_wrong(cluster: Cluster, wrong, says: str) -> None:
    verdict = check_int8_all_reduce(cluster, wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message


def by_the_model(compute_us, comm_us, start_us, latency_us):
    def total_us(m):
        compute = start_us + (compute_us - start_us) / m
        comm = latency_us + (comm_us - latency_us) / m
        return compute + comm + (m - 1) * max(compute, comm)

    return min(range(1, 65), key=total_us)


def as_array(*layer):
    return np.int64(by_the_model(*layer))


def as_tensor(*layer):
    return torch.tensor([float(by_the_model(*layer))])


@pytest.mark.parametrize("right", [by_the_model, as_array, as_tensor])
def test_chunk_choice_right(cluster2: Cluster, right) -> None:
    verdict = check_chunk_choice(cluster2, right)
    assert verdict.passed, verdict.message
    assert re.search(r"Measured here, over an emulated link of .*: your \d+ chunks? \d+\.\d ms", verdict.message)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda *layer: 1, "nothing left to hide behind"),
        (lambda *layer: 4, "once more|nothing left"),
        (lambda *layer: 64, "latency and the start-up once more"),
        (lambda compute, comm, *_: max(1, round(compute / comm)), "slower, at most 10 % is asked|slower, at most 10%"),
        (lambda *layer: True, "1 to 64; it returned True"),
        (lambda *layer: 0, "1 to 64; it returned 0"),
        (lambda *layer: 2.5, "1 to 64; it returned 2.5"),
        (lambda *layer: 10**9, "1 to 64"),
        (lambda *layer: "4 chunks", "1 to 64; it returned '4 chunks'"),
        (lambda *layer: None, "it returned None"),
        (lambda *layer: layer[9], "line 1 of <lambda>: IndexError"),
    ],
)
def test_chunk_choice_wrong(cluster2: Cluster, wrong, says: str) -> None:
    verdict = check_chunk_choice(cluster2, wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message
