"""The shard painter: its figure and its panel."""

import re

import pytest

from tplab.collectives.cost import AlphaBeta
from tplab.lab import style
from tplab.lab.figures.painter import painter_figure, rank_colour, short_bytes
from tplab.lab.panels.painter import LINKS, SHAPES, THIS_MACHINE, ShardPainter, verdict
from tplab.layers.plan import CANONICAL, BlockPlan, plan_block

pytestmark = pytest.mark.timeout(60)

LLAMA = {"hidden": 4096, "intermediate": 14336, "num_heads": 32, "num_kv_heads": 8, "itemsize": 2}
TINY = {"hidden": 768, "intermediate": 3072, "num_heads": 12, "num_kv_heads": 4, "itemsize": 2}


def plan_of(*choices: str, tokens: int = 4096, n: int = 4, **sizes: int) -> BlockPlan:
    return plan_block(choices, **LLAMA | sizes, tokens=tokens, n=n)


def texts(figure: object) -> list[str]:
    return [item.text for item in figure.layout.annotations]  # type: ignore[attr-defined]


def collectives(figure: object) -> list[str]:
    marks = [item for item in figure.layout.annotations if item.bgcolor == style.COLLECTIVE]  # type: ignore[attr-defined]
    return [re.sub("</?b>", "", item.text) for item in marks]


def polygons(figure: object, word: str) -> list[object]:
    return [item for item in figure.data if item.text and word in item.text]  # type: ignore[attr-defined]


def extent(traces: list[object]) -> tuple[float, float]:
    x = [value for trace in traces for value in trace.x if value is not None]  # type: ignore[attr-defined]
    y = [value for trace in traces for value in trace.y if value is not None]  # type: ignore[attr-defined]
    return max(x) - min(x), max(y) - min(y)


def test_the_canonical_figure_marks_two_all_reduces() -> None:
    figure = painter_figure(plan_of(*CANONICAL.values()))
    assert collectives(figure) == ["all-reduce 32 MiB"] * 2
    assert figure.layout.title.text == "One block on 4 ranks: 2 all-reduces"
    marks = next(item for item in figure.data if item.name == "forced collective")
    assert len(marks.x) == 2
    assert marks.marker.color == style.COLLECTIVE
    assert "residual add" in marks.text[0]
    assert {item.name for item in figure.data if item.showlegend is not False} == {
        *(f"rank {rank}" for rank in range(4)),
        "forced collective",
    }
    assert "<b>MODEL</b>" in texts(figure)
    assert figure.layout.paper_bgcolor == "white"


def test_matrices_are_to_scale_and_striped_by_their_split() -> None:
    figure = painter_figure(plan_of("column", "column", "row", "row"))
    out, down, up = (extent(polygons(figure, f"{name}, split")) for name in ("out", "down", "up"))
    assert down[1] / down[0] == pytest.approx(14336 / 4096)
    assert out[0] == pytest.approx(out[1])
    assert out[0] == pytest.approx(down[0])
    assert up[0] == pytest.approx(down[1])  # gate and up one above the other, each 14336 wide
    (stripe,) = polygons(figure, "out, split by column: rank 1")
    assert extent([stripe]) == pytest.approx((out[0] / 4, out[1]))
    assert stripe.fillcolor == rank_colour(1, 4)
    (stripe,) = polygons(figure, "down, split by row: rank 1")
    assert extent([stripe]) == pytest.approx((down[0], down[1] / 4))
    stripes = [polygons(figure, f"down, split by row: rank {rank}")[0] for rank in range(4)]
    assert [min(v for v in item.y if v is not None) for item in stripes] == sorted(
        min(v for v in item.y if v is not None) for item in stripes
    )


def test_fused_matrices_give_each_rank_a_share_of_each_part() -> None:
    figure = painter_figure(plan_of(*CANONICAL.values()))
    for name, parts in (("qkv", 3), ("up", 2), ("out", 1)):
        for trace in polygons(figure, f"{name}, split"):
            assert list(trace.x).count(None) == parts


def test_replicated_is_hatched_and_shared_heads_too() -> None:
    figure = painter_figure(plan_of(*["replicated"] * 4))
    assert not collectives(figure)
    assert [item.fillpattern.shape for item in polygons(figure, "on every rank")] == ["/"] * 4
    assert not any(item.name.startswith("rank") for item in figure.data)
    assert "no collectives" in figure.layout.title.text
    shared = painter_figure(plan_of(*CANONICAL.values(), n=6, **TINY))
    (trace,) = polygons(shared, "k, v heads on several ranks")
    assert trace.fillpattern.shape == "x"


def test_layouts_stand_on_the_arrows() -> None:
    written = texts(painter_figure(plan_of("row", "column", "column", "row")))
    assert "block input, replicated" in written
    assert "<i>local slice, free</i>" in written
    assert written.count("partial sums") == 2  # after qkv and after down
    assert written.count("split by heads") == 2
    arrows = next(item for item in painter_figure(plan_of(*CANONICAL.values())).data if item.name == "arrows")
    assert len(arrows.x) == 9


def test_nothing_moves_when_a_choice_changes() -> None:
    places = {
        tuple(item.x + item.y)
        for choices in (["column"] * 4, ["row"] * 4, ["replicated"] * 4)
        for item in painter_figure(plan_of(*choices)).data
        if item.name == "arrows"
    }
    assert len(places) == 1


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_everything_stays_inside_the_drawing(n: int, shape: object) -> None:
    sizes = {name: getattr(shape, name) for name in ("hidden", "intermediate", "num_heads", "num_kv_heads")}
    choices = ["replicated"] * 4 if sizes["num_heads"] % n else ["row"] * 4
    figure = painter_figure(plan_of(*choices, n=n, **sizes))
    (left, right), (bottom, top) = figure.layout.xaxis.range, figure.layout.yaxis.range
    for trace in figure.data:
        assert all(left <= value <= right for value in trace.x if value is not None)
        assert all(top <= value <= bottom for value in trace.y if value is not None)


def test_bytes_have_three_digits() -> None:
    sizes = (0, 999, 1000, 1536, 1023 * 1024, 5e9, 1 << 50)
    assert [short_bytes(size) for size in sizes] == [
        *("0 B", "999 B", "1,000 B", "1.5 KiB", "1,023 KiB", "4.66 GiB", "1,024 TiB"),
    ]


@pytest.fixture
def panel() -> ShardPainter:
    return ShardPainter()


def test_it_starts_canonical(panel: ShardPainter) -> None:
    assert panel.plan.is_canonical
    assert "Canonical: 2 all-reduces per block." in panel._verdict.value
    assert panel.figure.layout.title.text == "One block on 4 ranks: 2 all-reduces"
    assert panel._view.outputs[0]["data"]["application/vnd.plotly.v1+json"]["data"]


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("name", CANONICAL)
@pytest.mark.parametrize("choice", ["column", "row", "replicated"])
def test_each_matrix_control_repaints(panel: ShardPainter, name: str, choice: str) -> None:
    before = panel.figure
    panel._named[name].value = choice
    assert panel.plan.choices == CANONICAL | {name: choice}
    assert (panel.figure is before) == (choice == CANONICAL[name])
    assert len(collectives(panel.figure)) == panel.plan.num_collectives
    assert panel.below.partition(">forced<")[2].count("<tr>") == panel.plan.num_collectives


def test_every_other_control_does_something(panel: ShardPainter) -> None:
    prices, sent = panel.below, panel.plan.sent_bytes
    panel._named["tokens"].value = 2048
    assert panel.plan.sent_bytes == 2 * sent
    assert "all-reduce 16 MiB" in collectives(panel.figure)
    panel._named["ranks"].value = 8
    assert panel.plan.n == 8
    assert "8 ranks" in panel.figure.layout.title.text
    panel._named["model"].value = "Llama-3.1 70B"
    assert panel.plan.hidden == 8192
    assert "80 blocks" in panel.below
    assert panel.below != prices
    prices = panel.below
    panel._named["link"].value = "InfiniBand NDR, 1 port"
    assert panel.below != prices
    assert "47 GB/s" in panel._about_link.value


def test_prices_are_the_plans(panel: ShardPainter) -> None:
    panel.paint(tokens=4096, link="NVLink 3 (A100)")
    us = panel.plan.time_us(2.0, 235)
    assert us == pytest.approx(2 * (6 * 2.0 + 1.5 * (32 << 20) / 235e3))
    assert f"{us:.3g} µs" in panel.below
    assert f"{us * 32 / 1000:.3g} ms" in panel.below
    for cell in ("2 all-reduces", "64 MiB", "96 MiB", "104 MiB", "3.25 GiB", "32 KiB"):
        assert panel.below.count(f">{cell}<") == 2, cell


def test_a_measured_link_comes_first(panel: ShardPainter) -> None:
    measured = ShardPainter(link=AlphaBeta(alpha_us=40.0, beta_GBps=1.5))
    assert measured._named["link"].value == THIS_MACHINE
    assert "40 µs per message, 1.5 GB/s" in measured._about_link.value
    assert THIS_MACHINE not in panel._named["link"].options


def test_heads_that_do_not_divide_are_said_and_the_figure_kept(panel: ShardPainter) -> None:
    panel._named["ranks"].value = 3
    assert "num_heads=32 does not divide by n=3" in panel.error
    assert panel.plan.n == 4
    assert "4 ranks" in panel.figure.layout.title.text
    for name in CANONICAL:
        panel._named[name].value = "replicated"
    assert panel.error == ""
    assert panel.plan.n == 3
    assert "cannot be split over 3 ranks" in panel._verdict.value
    panel.paint(ranks=2)
    assert panel.error == ""


def test_paint_sets_the_controls_at_once(panel: ShardPainter) -> None:
    assert panel.paint(qkv="row", out="row", up="replicated", down="replicated", model="tiny", ranks=6) is panel
    assert {name: panel._named[name].value for name in CANONICAL} == panel.plan.choices
    assert panel.plan.choices == {"qkv": "row", "out": "row", "up": "replicated", "down": "replicated"}
    assert panel.plan.n == 6


def test_paint_names_what_is_offered_and_changes_nothing(panel: ShardPainter) -> None:
    before = panel._named.settings()
    for match, bad in (
        ("up must be one of column, row, replicated; got 'diagonal'", {"up": "diagonal"}),
        ("ranks must be a whole number from 1 to 8; got 9", {"ranks": 9}),
        ("tokens must be one of 1, 2, 4, .*; got 1000", {"tokens": 1000}),
        ("model must be one of tiny, Llama-3.1 8B, Llama-3.1 70B; got 'GPT'", {"model": "GPT"}),
        ("link must be one of NVLink 4", {"link": "string"}),
        ("num_heads=32 does not divide by n=5", {"ranks": 5, "tokens": 1}),
    ):
        with pytest.raises(ValueError, match=match):
            panel.paint(**bad)
    assert panel._named.settings() == before


def test_the_verdict_says_how_much_dearer() -> None:
    link = LINKS["NVLink 4 (H100)"]
    free = AlphaBeta(alpha_us=0.0, beta_GBps=100.0)
    canonical = plan_of(*CANONICAL.values())
    columns = plan_of(*["column"] * 4)
    assert "1.62 times the canonical plan's time" in verdict(columns, canonical, free)  # 208/64 S, half the steps
    replicated = verdict(plan_of(*["replicated"] * 4), canonical, link)
    assert "Nothing on the link. Each rank holds and multiplies 4 times the weights" in replicated
    assert "cache is 4 times as large" in replicated
    half = verdict(plan_of("column", "row", "replicated", "replicated"), canonical, link)
    assert "50% less time on the link" in half
    assert "in more calls" in verdict(plan_of("column", "column", "column", "row"), canonical, link)
    assert "One rank" in verdict(plan_of(*["row"] * 4, n=1), plan_of(*CANONICAL.values(), n=1), link)
    instant = AlphaBeta(alpha_us=0.0, beta_GBps=float("inf"))
    assert verdict(columns, canonical, instant)  # no division by zero
