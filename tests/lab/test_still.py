"""Every live thing is followed by a picture of itself that needs no kernel, and is renewed when it has settled."""

import json
import time
from collections.abc import Iterator
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
import pytest
from IPython.display import display

from tplab.lab import ChunkModel, HelloPanel, Pool, Predict
from tplab.lab.panels.check_boxes import CheckBoxes
from tplab.lab.panels.figure_view import FigureView
from tplab.lab.saving import MARK, PLOTLY, WIDGET_VIEW
from tplab.lab.still import Stilled


class Page:
    """What a front end has been sent: outputs in order, and those with a name by their name."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []
        self.updates = 0

    def publish(
        self, data: Any, metadata: Any = None, *, transient: Any = None, update: bool = False, **_: Any
    ) -> None:
        output = json.loads(
            json.dumps({"data": data, "metadata": metadata, "name": (transient or {}).get("display_id")})
        )
        if update:
            self.updates += 1
            at = [number for number, each in enumerate(self.outputs) if each["name"] == output["name"]]
            assert at, "an output that nobody has"
            for number in at:
                self.outputs[number] = output
        else:
            self.outputs.append(output)

    @property
    def stills(self) -> list[dict[str, Any]]:
        return [each["data"] for each in self.outputs if MARK in (each["metadata"] or {})]

    @property
    def text(self) -> str:
        return " ".join(each.get("text/html", "") + each["text/plain"] for each in self.stills)

    def figures(self) -> list[str]:
        return [each[PLOTLY]["layout"]["title"]["text"] for each in self.stills if PLOTLY in each]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    from IPython.core.interactiveshell import InteractiveShell

    page = Page()
    shell = InteractiveShell.instance()
    monkeypatch.setattr(shell.display_pub, "publish", page.publish)
    monkeypatch.setattr("tplab.lab.panels.analytic.AFTER_A_MOVE_S", 0.5)
    yield page
    InteractiveShell.clear_instance()


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_panel_is_followed_by_its_figure_its_settings_and_how_to_go_on(page: Page) -> None:
    panel = ChunkModel()
    display(panel)
    assert page.outputs[0]["data"][WIDGET_VIEW]["model_id"] == panel.model_id
    assert {each["metadata"][MARK]["still"] for each in page.outputs[1:]} == {panel.model_id}
    (title,) = page.figures()
    assert title == panel.figure.layout.title.text
    assert "Settings: chunks 1, matmul 30, all-reduce 24" in page.text
    assert "Run ▸ Run All Cells brings the controls back." in page.text


def test_what_a_cell_sets_is_in_it_at_once_and_what_a_hand_moves_once_it_has_settled(page: Page) -> None:
    panel = ChunkModel()
    panel.show(num_chunks=2)  # not displayed: nothing to renew
    display(panel)
    panel.show(num_chunks=4)
    assert "chunks 4" in page.text
    assert page.figures() == [panel.figure.layout.title.text]
    before = page.updates
    panel.show(num_chunks=4)
    assert page.updates == before, "nothing changed"
    for chunks in (5, 6, 7, 8):
        panel._named["num_chunks"].value = chunks
        assert "chunks 4" in page.text
    wait_for(lambda: "chunks 8" in page.text)
    wait_for(lambda: page.figures() == [panel.figure.layout.title.text])
    assert page.updates <= before + 3, "once for each output, not for each move"


def test_a_run_brings_its_figure_into_a_place_that_was_empty(page: Page) -> None:
    pool = Pool(1, "gloo")
    try:
        panel = HelloPanel(pool)
        display(panel)
        assert page.figures() == []
        assert "Not run yet" in page.text
        panel.configure(repeats=10)
        panel.run()
        assert page.figures() == [panel.figure.layout.title.text]
        assert "Repeat 10 times" in page.text
        assert "Done in" in page.text
    finally:
        pool.close()


def test_a_pool_does_not_claim_that_its_ranks_are_there(page: Page) -> None:
    pool = Pool(1, "gloo")
    try:
        display(pool)
        pool.start()
        assert "1 rank over gloo" in page.text
        assert "ready" not in page.text
        assert str(pool.cluster.pids[0]) not in page.text
    finally:
        pool.close()


def test_a_covered_answer_is_not_in_it_and_an_answer_that_was_seen_is(page: Page) -> None:
    guess = Predict("how long", unit="ms")
    figure = go.Figure(layout={"title": {"text": "The answer's figure"}})
    display(guess)
    display(guess.compare(31.25, source="model", shown=["told", figure, lambda: figure]))
    assert "31.25" not in json.dumps(page.outputs)
    assert "told" not in json.dumps(page.outputs)
    assert page.figures() == []
    assert "brings the field for your number back" in page.text
    guess.commit(30)
    assert "Committed: 30 ms" in page.text
    assert "You predicted 30 ms. Computed: 31.2 ms" in page.text
    assert "told" in page.text
    assert page.figures() == ["The answer's figure"] * 2
    assert "brings the field" not in page.text


@pytest.mark.parametrize("wrapped", [lambda many: many, lambda many: lambda: many, widgets.VBox])
def test_all_figures_of_an_answer_are_in_it_however_they_are_wrapped(page: Page, wrapped: Any) -> None:
    figures = [go.Figure(layout={"title": {"text": name}}) for name in ("one", "two")]
    views = [FigureView(min_height=100) for _ in figures]
    for view, figure in zip(views, figures, strict=True):
        view.show(figure)
    guess = Predict("how long")
    display(guess.compare(1, source="model", shown=wrapped([*views, widgets.HTML("the end")])))
    assert page.figures() == []
    guess.commit(1)
    assert page.figures() == ["one", "two"]
    assert "the end" in page.text


def test_figures_that_nobody_foresaw_are_named_and_cost_no_words(page: Page) -> None:
    guess = Predict("how long")
    figures = [go.Figure(layout={"title": {"text": f"figure {number}"}}) for number in range(5)]
    display(guess.compare(1, source="model", shown=lambda: [*figures, "the end"]))
    guess.commit(1)
    assert page.figures() == ["figure 0", "figure 1", "figure 2"]
    assert "figure 4" in page.text
    assert "the end" in page.text


def test_displayed_in_two_cells_both_are_renewed(page: Page) -> None:
    panel = ChunkModel()
    display(panel)
    display(panel)
    panel.show(num_chunks=3)
    assert page.figures() == [panel.figure.layout.title.text] * 2


def test_words_figures_and_outputs_of_any_widget_in_order_without_what_is_hidden(page: Page) -> None:
    class Odd(Stilled, widgets.VBox):
        pass

    view = FigureView(min_height=100)
    view.show(go.Figure(layout={"title": {"text": "a < b"}}))
    output = widgets.Output()
    output.append_stdout("printed <words>")
    hidden = widgets.HTML("hidden", layout=widgets.Layout(display="none"))
    controls = (widgets.IntSlider(), CheckBoxes(["a", "b"], value=["a"], description="Letters"))
    odd = Odd([widgets.HTML("<b>one</b>"), *controls, hidden, widgets.HBox([view]), output])
    display(odd)
    first, figure, last = page.stills
    assert first["text/plain"] == "one"
    assert figure["text/plain"].startswith("a < b. printed <words>")
    assert "<pre>printed &lt;words&gt;</pre>" in last["text/html"]
    assert "hidden" not in page.text


def test_a_closed_panel_keeps_its_last_picture_and_complains_of_nothing(
    page: Page, caplog: pytest.LogCaptureFixture
) -> None:
    panel = ChunkModel()
    display(panel)
    panel._named["num_chunks"].value = 2  # its picture is due when the panel is closed already
    panel.close()
    panel.show(num_chunks=3)
    wait_for(lambda: not panel._still_waits)
    assert "chunks 1" in page.text
    assert caplog.text == ""


def test_a_fault_in_a_picture_costs_no_run(page: Page, caplog: pytest.LogCaptureFixture) -> None:
    panel = ChunkModel()
    display(panel)
    panel.still = lambda: 1 / 0
    panel.show(num_chunks=2)
    assert "could not be renewed" in caplog.text
