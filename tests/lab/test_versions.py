"""ipywidgets 7 and Colab, as far as they can be had without them; tests/colab has their versions."""

import json
import sys
from types import ModuleType
from typing import Any

import ipywidgets as widgets
import pytest
from traitlets import TraitError

from tplab.lab import Pool, Predict, ScheduleStudio
from tplab.lab.panels import versions
from tplab.lab.still import Stilled


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    bundles: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda data, *_, **__: bundles.append(data))
    return bundles


@pytest.fixture
def colab(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Colab has been told to do."""
    told: list[str] = []
    output = ModuleType("google.colab.output")
    output.enable_custom_widget_manager = lambda: told.append("custom widgets")  # type: ignore[attr-defined]
    package = ModuleType("google.colab")
    package.output = output  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", package)
    shell = type("Shell", (), {"__module__": "google.colab._shell"})()
    monkeypatch.setattr(versions, "get_ipython", lambda: shell)
    return told


def test_a_widget_of_ipywidgets_7_is_shown_by_its_view(published: list[dict[str, Any]]) -> None:
    class Seven:
        """What ipywidgets 7 gives a widget: no ``_repr_mimebundle_``."""

        model_id = "abc"
        children = ()

        def add_class(self, name: str) -> None:
            assert name == "tplab-live"

    class Shown(Stilled, Seven):
        pass

    Shown()._ipython_display_()
    assert published[0][versions.VIEW] == {"version_major": 2, "version_minor": 0, "model_id": "abc"}


@pytest.mark.parametrize("make", [ScheduleStudio, lambda: Predict("bytes"), lambda: Pool(1, "gloo")])
def test_what_colab_is_told_before_it_is_shown_a_widget(
    make: Any, colab: list[str], published: list[dict[str, Any]]
) -> None:
    widget = make()
    told = len(colab)
    widget._ipython_display_()
    widget.close()
    assert len(colab) > told
    assert versions.VIEW in published[0]


def test_stills_on_colab_have_figures_that_need_no_renderer(
    colab: list[str], published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ScheduleStudio()._ipython_display_()
    figures = [data for data in published if "application/vnd.plotly.v1+json" in data]
    assert figures
    assert all("Plotly.newPlot" in data["text/html"] for data in figures)
    assert ":root:not(:has(.jp-OutputArea))" in json.dumps(published)

    published.clear()
    monkeypatch.setattr(versions, "get_ipython", lambda: None)  # as on Kaggle, where the package is installed, too
    ScheduleStudio()._ipython_display_()
    said = json.dumps(published)
    assert "newPlot" not in said
    assert ":root:not(" not in said, "elsewhere that style would hide what stands in other cells"


def test_words_under_the_pointer_by_the_name_that_this_ipywidgets_has(monkeypatch: pytest.MonkeyPatch) -> None:
    slider = widgets.IntSlider(**versions.hint("how many"))
    assert slider.get_state()["description_tooltip" if versions.SEVEN else "tooltip"] == "how many"
    monkeypatch.setattr(versions, "SEVEN", True)
    assert versions.hint("how many") == {"description_tooltip": "how many"}
    layout = widgets.Layout()
    try:
        versions.put_edge(layout, "4px solid red")
    except TraitError:
        pytest.fail("a border that this ipywidgets refuses")
    assert layout.border == "1px solid red"
