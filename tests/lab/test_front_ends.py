"""Whatever is live says something in front ends that show no widgets, or no plotly: for every panel and picture."""

import inspect
from collections.abc import Iterator
from typing import Any

import ipywidgets as widgets
import pytest

from tplab import lab
from tplab.lab import Pool, Predict, pictures
from tplab.lab.panels.figure_view import plain
from tplab.lab.saving import MARK, PLOTLY, WIDGET_VIEW
from tplab.lab.still import Stilled

INSIDE = {"CheckBoxes", "FigureView", "RunStatus", "RanksOnRequest"}
"""Parts of panels, and of a page that nobody saves."""


def below(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from below(each)


def shown() -> dict[str, type]:
    """Every live thing that a cell may show, by name; none that others only build upon."""
    for room in (lab, pictures):
        for name in room.__all__:
            getattr(room, name)
    found = {each for each in below(widgets.Widget) if each.__module__.startswith("tplab.")}
    return {each.__name__: each for each in found if each.__name__ not in INSIDE and not each.__subclasses__()}


def made(kind: type, pool: Pool) -> Any:
    own = {
        "machine": lab.LinkPanel,
        "calibrated": lambda: lab.CalibrationPanel(pool),
        "model": lab.example_model,
        "question": lambda: "how much",
        "guess": lambda: Predict("how much"),
        "answer": lambda: None,
        "pool": lambda: pool,
        "functions": lambda: len,
    }
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    wanted = [
        each.name
        for each in parameters
        if (each.default is each.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY))
        or (each.kind is each.VAR_POSITIONAL and each.name in own)
    ]
    return kind(*(own[name]() for name in wanted))


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setattr(Pool, "cluster", property(lambda pool: None))  # shown, a pool starts its ranks
    return Pool(2, "gloo")


@pytest.mark.parametrize("name", sorted(shown()))
def test_it_is_words_where_it_is_not_shown(name: str, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = shown()[name]
    assert issubclass(kind, Stilled)
    outputs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    monkeypatch.setattr(
        "IPython.display.publish_display_data", lambda data, metadata=None, **_: outputs.append((data, metadata or {}))
    )
    made(kind, pool)._ipython_display_()
    (view, _), *stills = outputs
    assert WIDGET_VIEW in view
    assert "not shown by this front end" in plain(view["text/html"])
    assert kind.__name__ not in view["text/html"]
    filled = [(data, metadata[MARK]) for data, metadata in stills if not metadata[MARK].get("empty")]
    assert filled
    for data, about in filled:
        assert set(about) == {"still"}
        assert PLOTLY in data or "text/html" in data or "image/png" in data
        assert data["text/plain"].strip()
    assert plain(filled[0][0]["text/html"])


def test_the_panels_are_among_them() -> None:
    assert {"AdvisorPanel", "MemoryWall", "Pool", "Predict", "Race", "SweepPanel", "WillItFit"} <= set(shown())
    assert len(shown()) > 25
