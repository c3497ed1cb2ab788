"""What a panel sends to its plot: the figure itself, little of it, and words for who cannot see it."""

import zlib

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from tplab.cluster import NoRoom, RankError, RankTimeout
from tplab.lab import style
from tplab.lab.panels import html
from tplab.lab.panels.figure_view import FigureView, described, packed, plain, unpacked


def curve(points: int) -> go.Figure:
    x = np.linspace(0.0, 1.0, points)
    return style.card(go.Figure(go.Scatter(x=x, y=np.sin(x))), title="A <b>curve</b>", badge="MODEL")


@pytest.mark.parametrize("points", [3, 20_000])
def test_what_is_sent_is_the_figure(points: int) -> None:
    figure = curve(points)
    sent = packed(figure)
    again = go.Figure(unpacked(sent))
    assert again.to_dict() == go.Figure(figure.to_dict()).to_dict()
    assert sent.startswith(b"{") == (points == 3)  # what is short is not compressed
    assert len(sent) < 17 * points + 2000, "numbers go as bytes, not as text"


def test_the_last_figure_counts_and_has_its_height() -> None:
    view = FigureView(min_height=300)
    assert view.layout.min_height == "300px"
    view.show(curve(3).update_layout(height=512))
    figure = curve(4)
    view.show(figure, alt="<p>It rises &amp; falls.</p><table><tr><td>a</td><td>b</td></tr></table>")
    assert view.figure is figure
    assert unpacked(view._plot) == unpacked(packed(figure))
    assert view.layout.min_height == "380px"
    assert view.alt == "A curve. It rises & falls. a b"


def test_words_for_who_cannot_see_it_are_not_endless() -> None:
    assert described(go.Figure(), "") == "Figure"
    assert len(described(curve(3), "word " * 1000)) == 900
    assert plain("5 &lt; 6<br>7<style>a</style>") == "5 < 6 7a"


def test_a_page_that_has_no_plotly_gets_it_and_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    view = FigureView(min_height=300)
    sent: list[tuple[object, list[bytes]]] = []
    monkeypatch.setattr(view, "send", lambda content, buffers: sent.append((content, buffers)))
    for content in ({"kind": "another"}, "plotly.js", None):
        view._on_message(view, content, [])
    assert sent == []
    view._on_message(view, {"kind": "plotly.js"}, [])
    [(content, [code])] = sent
    assert content == {"kind": "plotly.js"}
    assert len(code) < 2e6  # below what servers let through in a moment
    assert b"Plotly" in zlib.decompress(code)


def test_plain_figures_have_the_camera_and_nothing_that_leaves_the_page() -> None:
    bundle = pio.renderers["plotly_mimetype"].to_mimebundle(curve(3).to_dict())
    config = bundle["application/vnd.plotly.v1+json"]["config"]
    assert config["modeBarButtons"] == [["toImage"]]
    assert (config["displaylogo"], config["showSendToCloud"]) == (False, False)


@pytest.mark.parametrize(
    ("error", "spoke"),
    [
        (RankError("boom", rank=1), True),
        (RankTimeout("late", ranks=(0, 2)), True),
        (ValueError("tp must divide 4"), False),
        (NoRoom("2 ranks take about 0.4 GB"), False),
        (OSError("disk"), False),
    ],
)
def test_ranks_words_stand_only_where_ranks_spoke(error: Exception, spoke: bool) -> None:
    assert ("What the ranks said" in html.error_card(error)) == spoke
    assert str(error) in html.error_card(error)
