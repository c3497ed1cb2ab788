"""Every mistake is caught by the equality test, and the right layer passes it."""

from typing import Any

import pytest
import torch
from torch import nn

from tplab import Cluster
from tplab.layers.mistakes import MISTAKES, TOLERANCE, demonstrate, equality_test, explain_mistakes
from tplab.layers.plain import Attention


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_mistake_is_caught_and_the_right_layer_passes(clusters: dict[int, Cluster], n: int) -> None:
    frame = demonstrate(clusters[n])
    assert list(frame) == ["system", "mistake", "wrong", "right_error", "caught", "why"]
    assert frame["mistake"].tolist() == [mistake.name for mistake in MISTAKES]
    assert set(frame["system"]) == {"S1", "S3", "common"}
    said = "Of 6 mistakes: an error from torch 1, another shape 1, wrong numbers of the right shape and no complaint 4."
    assert explain_mistakes(frame).startswith(said)
    assert explain_mistakes(frame).endswith("catches all of them.")
    assert frame["caught"].all()
    assert frame["right_error"].max() < TOLERANCE
    assert not frame["wrong"].str.contains("equal|nan").any()
    by_name = frame.set_index("mistake")["wrong"]
    assert by_name["all-reduce of column shards"] == f"shape (2, 5, {48 // n}) instead of (2, 5, 48)"
    assert by_name["column-split output projection"].startswith("raises: ")
    assert by_name["bias before the sum"].startswith("off by ")


def on(rank: Any, name: str, tokens: int) -> tuple[bool, str]:
    mistake = next(mistake for mistake in MISTAKES if mistake.name == name)
    torch.manual_seed(0)
    plain = nn.Linear(48, 48) if mistake.plain == "linear" else Attention(48, 12)
    x = torch.randn(1, tokens, 48)
    with torch.no_grad():
        return equality_test(mistake.run(plain, x, rank.group), plain(x))


@pytest.mark.parametrize(
    ("name", "n", "tokens", "passes"),
    [
        ("no causal mask", 2, 1, True),
        ("no causal mask", 2, 2, False),
        ("bias before the sum", 1, 5, True),
        ("bias before the sum", 2, 5, False),
        ("all-reduce of column shards", 1, 5, True),
        ("contiguous split of [Q | K | V]", 1, 5, True),
        ("contiguous split of [Q | K | V]", 2, 5, False),
        ("attention over heads", 1, 5, False),
        ("column-split output projection", 1, 5, True),
    ],
)
def test_some_are_right_on_one_rank_or_one_token(
    clusters: dict[int, Cluster], name: str, n: int, tokens: int, passes: bool
) -> None:
    assert [passed for passed, _ in clusters[n].run(on, name, tokens)] == [passes] * n


def test_on_one_rank_the_frame_does_not_claim_to_have_caught_them(clusters: dict[int, Cluster]) -> None:
    frame = demonstrate(clusters[1]).set_index("mistake")
    assert not frame.loc["bias before the sum", "caught"]
    assert "catches all" not in explain_mistakes(frame)
    assert frame.loc["bias before the sum", "wrong"] == "equal"
    assert frame.loc["no causal mask", "caught"]


def test_the_equality_test() -> None:
    want = torch.tensor([1.0, -4.0])
    assert equality_test(want.clone(), want) == (True, "equal")
    assert equality_test(want + 4e-6, want) == (True, "equal")
    assert equality_test(want[:1], want) == (False, "shape (1,) instead of (2,)")
    assert equality_test(want + torch.tensor([1.0, 0.0]), want) == (False, "off by 25 %")
    assert equality_test(want + torch.tensor([0.0, 1e-3]), want) == (False, "off by 0.025 %")
    passes, what = equality_test(torch.tensor([1.0, float("nan")]), want)
    assert not passes
    assert "nan" in what
