"""The generation panel on real ranks, and the figure of layouts."""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
import pytest

from tplab.lab.figures.generation import explain_stages, layouts_figure
from tplab.lab.panels.generation import (
    GenerationPanel,
    _at_work,
    example_model,
    example_prompts,
    layouts_badge,
    layouts_frame,
    shares_in_words,
)
from tplab.lab.panels.pool import Pool
from tplab.models.result import GRAPHS

pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def panel(no_ranks_left: None) -> Iterator[GenerationPanel]:
    pool = Pool(num_ranks=2, backend="gloo")
    yield GenerationPanel(pool).configure(new_tokens=8, prompt_tokens=8)
    pool.stop()


def test_run_and_compare_layouts(panel: GenerationPanel) -> None:
    panel.configure(tp=2)
    panel.run()
    first = panel.generation
    assert first is not None
    assert (first.layout.tp, first.layout.pp) == (2, 1)
    assert [len(tokens) for tokens in first.tokens] == [8] * 4
    for tokens in first.tokens:
        assert " ".join(map(str, tokens)) in panel._below.value
    panel.configure(tp=1, micro_batches=2)
    assert "Settings changed" in panel._ribbon.value
    panel.run()
    second = panel.generation
    assert second is not None
    assert (second.layout.tp, second.layout.pp, second.num_micro_batches) == (1, 2, 2)
    assert second.tokens == first.tokens
    assert panel.figure is not None
    assert "TP 1 × PP 2" in panel.figure.layout.title.text
    panel._look.value = "Layouts"
    bars = [trace for trace in panel.figure.data if trace.type == "bar"]
    assert list(bars[0].x) == ["TP 2 × PP 1", "TP 1 × PP 2, 2 in flight"]
    assert panel.frame["tp"].tolist() == [2, 1]
    # Another model is not set beside these.
    panel.configure(family="qwen3")
    panel.run()
    assert len(panel.frame) == 1
    panel._look.value = "Timeline"


def test_a_tp_that_does_not_divide_is_said(panel: GenerationPanel) -> None:
    panel.configure(tp=4)
    with pytest.raises(ValueError, match="TP 4 does not divide the pool's 2 ranks"):
        panel.run()
    assert "TP 4 does not divide" in panel._error.value
    panel.configure(tp=2)
    panel.run()
    assert panel._error.value == ""


def test_configure_names_what_is_offered(panel: GenerationPanel) -> None:
    with pytest.raises(ValueError, match="ranks is not a setting of this panel, which has family, size, tp"):
        panel.configure(ranks=3)
    with pytest.raises(ValueError, match="family must be one of llama, mistral, qwen2, qwen3; got 'bert'"):
        panel.configure(family="bert")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("size", ["tiny (4 layers of 256)", "small (8 layers of 512)"])
def test_examples_are_models(family: str, size: str) -> None:
    config = example_model(family, size)
    assert config.model_type == family
    assert config.num_heads % config.num_kv_heads == 0


def test_prompts_differ_and_have_tokens() -> None:
    prompts = example_prompts(5, 3)
    assert [len(prompt) for prompt in prompts] == [3, 2, 1, 1, 1]
    assert len({tuple(prompt) for prompt in prompts}) == 5
    assert all(0 <= token < 1003 for prompt in prompts for token in prompt)


FRAME = pd.DataFrame(
    {
        "tp": [1, 2],
        "pp": [1, 2],
        "micro_batches": [1, 3],
        "ttft_ms": [4.0, 9.0],
        "tpot_ms": [10.0, 20.0],
        "compute_share": [0.9, 0.2],
        "collective_share": [0.0, 0.5],
        "graph_share": [0.0, 0.0],
        "wait_share": [0.0, 0.25],
        "num_ranks": [1, 4],
        "num_cores": [2, 2],
        "backend": ["gloo", "gloo"],
        "launch_mode": ["eager", "eager"],
    }
)


def test_bars_are_shares_of_a_tokens_time() -> None:
    figure = layouts_figure(FRAME, badge="LIVE")
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["computing"].y) == [9.0, 4.0]
    assert list(by_name["collectives"].y) == [0.0, 10.0]
    assert list(by_name["waiting for another stage"].y) == [0.0, 5.0]
    assert list(by_name["computing"].x) == ["TP 1 × PP 1", "TP 2 × PP 2, 3 in flight"]


def test_the_time_to_the_first_token_stands_below_its_layout_not_on_a_bar() -> None:
    figure = layouts_figure(FRAME, badge="LIVE")
    assert list(figure.layout.xaxis.ticktext) == [
        "TP 1 × PP 1<br>first: 4 ms",
        "TP 2 × PP 2, 3 in flight<br>first: 9 ms",
    ]
    assert list(figure.layout.xaxis.tickvals) == list(figure.data[0].x)
    assert all(trace.text is None for trace in figure.data)


def test_words_on_stages_follow_the_traces(panel: GenerationPanel) -> None:
    runs = []
    for k in (1, 2):
        panel.configure(tp=1, micro_batches=k).run()
        assert panel.generation is not None
        runs.append(panel.generation)
    said = explain_stages(runs)
    for made in runs:
        assert f"idle for {made.trace().idle_over_total:.0%} of the time" in said
    assert "With 1 micro-batch in flight" in said
    assert "would leave 50%" in said
    assert f"{runs[1].output_tokens_per_s / runs[0].output_tokens_per_s:.2f} times" in said
    assert "times" not in explain_stages(runs[::-1])  # fewer in flight are not said to give anything
    panel.configure(tp=2, micro_batches=1).run()
    made = panel.generation
    assert made is not None
    assert explain_stages([made]) == "One stage waits for no other."
    trace = made.trace()
    shares = made.shares()[0]
    assert trace.collectives
    assert trace.collective_over_total > 0
    assert sum(end - start for _, start, end in trace.collectives) == pytest.approx(shares["collective"] * made.total_s)
    # Inside CUDA graphs nobody sees those of decode steps: a share of the prefill's alone would say too little.
    graphs = replace(made, decode=GRAPHS)
    assert not graphs.trace().collectives
    assert _at_work(graphs) == "stages at work, their collectives inside CUDA graphs"
    assert _at_work(made) == "stages at work, and their collectives"
    assert _at_work(runs[0]) == "stages at work"


def test_collectives_inside_graphs_are_not_shown_as_none() -> None:
    graphs = FRAME.assign(compute_share=[0.9, 0.1], collective_share=[0.0, 0.02], graph_share=[0.0, 0.7])
    by_name = {trace.name: trace for trace in layouts_figure(graphs, badge="LIVE").data}
    assert list(by_name["CUDA graphs (computing and collectives)"].y) == [0.0, 14.0]
    assert "CUDA graphs (computing and collectives)" not in [
        trace.name for trace in layouts_figure(FRAME, badge="LIVE").data
    ]
    alone, two = (shares_in_words(row) for row in graphs.itertuples())
    assert alone == "90 % computing, 0 % in collectives, 0 % waiting for another stage"
    assert two == (
        "70 % in CUDA graphs (computing and collectives, which have no times of their own there), 12 % in the prefill, "
        "25 % waiting for another stage"
    )
    assert (
        layouts_badge(graphs.assign(launch_mode="graph", backend="nccl")) == "LIVE nccl · 1 and 4 ranks · CUDA graphs"
    )


def test_the_badge_says_who_shares_cores() -> None:
    assert layouts_badge(FRAME) == "LIVE gloo · 1 and 4 ranks, 4 sharing 2 cores"
    assert layouts_badge(FRAME[:1]) == "LIVE gloo · 1 rank"


def test_no_generations_no_rows() -> None:
    assert layouts_frame([]).empty
