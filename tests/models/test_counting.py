"""What a step communicates, counted in a real run: 2L + 1 all-reduces and an all-gather, one message per boundary."""

from typing import Any

import pandas as pd
import pytest

from tplab.models import ModelConfig
from tplab.models.counting import count_generation, explain_counts

pytestmark = pytest.mark.timeout(90)

MODEL = ModelConfig(
    model_type="llama",
    vocab_size=103,
    hidden_size=32,
    intermediate_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
)
PROMPTS = [[1, 2, 3, 4, 5], [6, 7]]


def calls(frame: pd.DataFrame, phase: str, rank: int) -> dict[str, tuple[int, int]]:
    rows = frame[(frame["phase"] == phase) & (frame["rank"] == rank)]
    return {row.call: (row.calls, row.bytes) for row in rows.itertuples()}


def test_tensor_parallel_steps_sum_twice_a_layer_and_once_for_the_embedding(clusters: Any) -> None:
    frame = count_generation(clusters[2], MODEL, PROMPTS, tp=2)
    assert frame["rank"].unique().tolist() == [0, 1]
    for rank in (0, 1):
        # 7 of (batch, tokens, hidden) float32; the gather: logit and id of two, for each sequence and rank, in float64.
        prefill, decode = calls(frame, "prefill", rank), calls(frame, "decode", rank)
        assert prefill["all-reduce"] == (7, 7 * 2 * 5 * 32 * 4)
        assert decode["all-reduce"] == (7, 7 * 2 * 1 * 32 * 4)
        assert prefill["all-gather"][0] == decode["all-gather"][0] == 1
        assert set(prefill) == set(decode) == {"all-reduce", "all-gather"}  # its messages are not counted again
    said = explain_counts(frame, MODEL.num_layers)
    assert "decode: 7 all-reduces and 1 all-gather (by the formula 2L + 1 = 7, and 1)." in said
    assert "7 all-reduces and 1 all-gather (by the formula 2L + 1 = 9, and 1)" in explain_counts(frame, 4)


def test_pipelines_send_one_message_over_each_boundary(clusters: Any) -> None:
    frame = count_generation(clusters[3], MODEL, PROMPTS, pp=3, tp=1)
    for rank, phase in ((0, "prefill"), (1, "prefill"), (0, "decode"), (1, "decode")):
        tokens = 5 if phase == "prefill" else 1
        assert calls(frame, phase, rank) == {"hidden states sent": (1, 2 * tokens * 32 * 4)}
    assert calls(frame, "decode", 2) == {"tokens sent": (2, 2 * 2 * 8)}
    said = explain_counts(frame, MODEL.num_layers)
    assert said.count("2 messages of hidden states over 2 boundaries, and 2 messages that take the tokens back") == 2


def test_both_cut_the_collectives_by_stages(clusters: Any) -> None:
    frame = count_generation(clusters[4], MODEL, PROMPTS, tp=2, pp=2)
    first, last = calls(frame, "decode", 0), calls(frame, "decode", 3)
    assert first["all-reduce"][0] + last["all-reduce"][0] == 7
    assert "all-gather" not in first
    assert last["all-gather"][0] == 1
    assert "decode: 7 all-reduces and 1 all-gather" in explain_counts(frame, MODEL.num_layers)


def test_one_rank_says_nothing_and_later_runs_are_not_counted(clusters: Any) -> None:
    frame = count_generation(clusters[1], MODEL, [1, 2])
    assert frame.empty
    assert explain_counts(frame, 3) == "No rank had anything to say to another."
    two = clusters[2]
    again = [count_generation(two, MODEL, PROMPTS, tp=2)["calls"].tolist() for _ in range(2)]
    assert again[0] == again[1]
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        count_generation(two, MODEL, [[]], tp=2)
    with pytest.raises(ValueError, match="prompts must be token ids"):
        count_generation(two, MODEL, "two words", tp=2)
