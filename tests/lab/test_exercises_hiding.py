"""The checker of 04's hidden all-reduce: right answers of several kinds, an empty one and planted wrong ones."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from tplab import Cluster
from tplab.checks import ArgumentError
from tplab.lab.exercises import check_overlap

pytestmark = pytest.mark.timeout(120)


def overlap(rank, x, weight, link, num_chunks=8):
    sums = [link.start_all_reduce(F.linear(part, weight)) for part in x.tensor_split(num_chunks)]
    return torch.cat([each.wait() for each in sums])


def in_place(rank, x, weight, link):
    """Four pieces of one result, each waited for when the next but one is done."""
    y = x.new_empty(len(x), len(weight))
    under_way = []
    for part, out in zip(x.tensor_split(4), y.tensor_split(4), strict=True):
        torch.matmul(part, weight.T, out=out)
        under_way.append(link.start_all_reduce(out))
        if len(under_way) > 2:
            under_way.pop(0).wait()
    for each in under_way:
        each.wait()
    return y


def by_output_features(rank, x, weight, link):
    """Pieces of the result's columns: also independent, here of no disadvantage."""
    sums = [link.start_all_reduce(torch.einsum("ti,di->td", x, part)) for part in weight.tensor_split(8)]
    return torch.cat([each.wait() for each in sums], dim=1).numpy()


def by_slices_of_columns(rank, x, weight, link):
    """Views that are not contiguous, in float64, the last sum waited for first."""
    y = x.double().new_empty(len(x), len(weight))
    sums = []
    for first in range(0, len(weight), 8):
        y[:, first : first + 8] = x.double() @ weight[first : first + 8].double().T
        sums.append(link.start_all_reduce(y[:, first : first + 8]))
    for each in reversed(sums):
        each.wait()
    return y


def on_a_thread(rank, x, weight, link):
    with ThreadPoolExecutor(1) as pool:
        sums = [pool.submit(link.all_reduce, part @ weight.T) for part in x.tensor_split(8)]
        return torch.cat([each.result() for each in sums])


@pytest.mark.parametrize("right", [overlap, in_place, by_output_features, by_slices_of_columns, on_a_thread])
def test_right_answers_pass(clusters, right) -> None:
    verdict = check_overlap(clusters[2], right)
    assert verdict.passed, verdict
    assert float(re.search(r"which is ([\d.]+) times", verdict.message)[1]) <= 1.15


def stub(rank, x, weight, link):
    raise NotImplementedError("cut x")


def nothing(rank, x, weight, link):
    overlap(rank, x, weight, link)


def blocking(rank, x, weight, link):
    return link.all_reduce(F.linear(x, weight))


def all_reduce_with_overlap(rank, x, weight, link):
    """The article's, with the asynchronous form that stands in its comment, waited for at once."""
    y = F.linear(x, weight)
    work = link.start_all_reduce(y)
    work.wait()
    return y


def waits_at_once_in_chunks(rank, x, weight, link):
    return torch.cat([link.start_all_reduce(F.linear(part, weight)).wait() for part in x.tensor_split(8)])


def products_first(rank, x, weight, link):
    parts = [F.linear(part, weight) for part in x.tensor_split(8)]
    return torch.cat([each.wait() for each in [link.start_all_reduce(part) for part in parts]])


def in_two(*arguments):
    return overlap(*arguments, num_chunks=2)


def one_behind_the_other(rank, x, weight, link):
    """Sums in one piece, after the last of eight products."""
    return link.all_reduce(torch.cat([F.linear(part, weight) for part in x.tensor_split(8)]))


def never_waits(rank, x, weight, link):
    parts = [F.linear(part, weight) for part in x.tensor_split(8)]
    for part in parts:
        link.start_all_reduce(part)
    return torch.cat(parts)


def copies_too_early(rank, x, weight, link):
    parts = [F.linear(part, weight) for part in x.tensor_split(8)]
    sums = [link.start_all_reduce(part) for part in parts]
    y = torch.cat(parts)
    for each in sums:
        each.wait()
    return y


def in_16_bits(rank, x, weight, link):
    return overlap(rank, x.bfloat16(), weight.bfloat16(), link).float()


def no_sum(rank, x, weight, link):
    return F.linear(x, weight)


def around_the_link(rank, x, weight, link):
    y = F.linear(x, weight)
    dist.all_reduce(y, group=rank.group, async_op=True).wait()
    return y


def by_messages(rank, x, weight, link):
    """The link gets copies, the ranks' own connection the numbers."""
    parts = [F.linear(part, weight) for part in x.tensor_split(8)]
    sums = [link.start_all_reduce(part.clone()) for part in parts]
    y = torch.cat(parts)
    coming = torch.empty_like(y)
    works = [dist.isend(y, 1 - rank.index, group=rank.group), dist.irecv(coming, 1 - rank.index, group=rank.group)]
    for each in [*works, *sums]:
        each.wait()
    return y + coming


def sums_twice(rank, x, weight, link):
    y = F.linear(x, weight)
    link.all_reduce(y.clone())
    return link.all_reduce(y)


def without_products(rank, x, weight, link):
    """Elementwise, which takes no time on the emulated processor."""
    sums = [link.start_all_reduce((part.unsqueeze(1) * weight).sum(-1)) for part in x.tensor_split(8)]
    return torch.cat([each.wait() for each in sums])


def on_a_list(rank, x, weight, link):
    return link.all_reduce([F.linear(x, weight)])


def one_piece_only(rank, x, weight, link):
    return link.all_reduce(F.linear(x[:64], weight))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (stub, "line 2 of stub: NotImplementedError: cut x"),
        (nothing, r"must return the sum, \(512, 64\); it returned None"),
        (
            blocking,
            r"right, but it takes 3\d\d ms for a product of 25\d ms.*at most 1.15.*one all-reduce, started when the",
        ),
        (
            all_reduce_with_overlap,
            r"nothing is left to compute while it runs \(S2, the article's _all_reduce_with_overlap",
        ),
        (waits_at_once_in_chunks, r"Each of 8 all-reduces is waited for before the next product begins \(S2"),
        (products_first, "All 8 products come before the first of 8 all-reduces"),
        (in_two, "In 2 pieces the last all-reduce is 1/2 of 100 ms, and nothing is left to hide it"),
        (one_behind_the_other, "There is one all-reduce"),
        (never_waits, "8 of 8 all-reduces were not waited for"),
        (copies_too_early, "rows are off"),
        (in_16_bits, "rows are off.*By no more than rounding to 16 bits"),
        (no_sum, "nothing was summed over the ranks"),
        (around_the_link, "every sum goes over link.*counted besides: all-reduce"),
        (by_messages, "it sent messages besides those of link"),
        (sums_twice, "65,536 numbers were summed, expected 32,768"),
        (without_products, "0.00 of the product was counted, expected 1"),
        (on_a_list, "line 2 of on_a_list: TypeError: link.start_all_reduce takes a tensor; got list"),
        (one_piece_only, r"must return the sum, \(512, 64\); it returned a tensor of shape \(64, 64\)"),
    ],
)
def test_wrong_answers_fail_and_say_why(clusters, wrong, says: str) -> None:
    verdict = check_overlap(clusters[2], wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message


def one_sum_fewer_on_rank_1(rank, x, weight, link):
    parts = [F.linear(part, weight) for part in x.tensor_split(8)]
    sums = [link.start_all_reduce(part) for part in parts[: 8 - rank.index]]
    for each in sums:
        each.wait()
    return torch.cat(parts)


def test_a_hang_is_told_as_one() -> None:
    with Cluster(2, "gloo") as cluster:
        verdict = check_overlap(cluster, one_sum_fewer_on_rank_1, timeout=3)
    assert not verdict.passed
    assert "rank 0 did not answer within 3 s" in verdict.message
    assert "Both ranks must start the same sums" in verdict.message


def test_other_ranks_are_refused(clusters) -> None:
    with pytest.raises(ArgumentError, match=r"cluster must have two ranks of gloo.*got '4 of gloo'"):
        check_overlap(clusters[4], overlap)
    with pytest.raises(ArgumentError, match="function must be your function itself"):
        check_overlap(clusters[2], None)  # type: ignore[arg-type]
