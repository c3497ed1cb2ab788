"""Pictures and figures of stored notebooks become live places; what an address may set, the picture takes."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tplab.lab.pictures import Race
from tplab.lab.pictures.picture import MOVES
from tplab.lab.saving import PICTURE, PLOTLY

DOCS = Path(__file__).parents[2] / "docs"
STATE = re.compile(r'<script type="application/json">(.*?)</script>', re.S)


@pytest.fixture(scope="module")
def places() -> Iterator[ModuleType]:
    """The extension that makes the places."""
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(DOCS / "_ext"))
    import tplab_pictures

    yield tplab_pictures
    sys.path.remove(str(DOCS / "_ext"))


def output(data: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": "display_data", "metadata": {}, "data": data}


def test_a_place_follows_the_image_that_it_replaces(places: ModuleType) -> None:
    state = {**Race().still_state(), "badge": "</script><b>"}
    stored = output({"image/png": "iVBO", "text/plain": "Race", PICTURE: {"picture": "race", "state": state}})
    image, place = places._with_place(stored)
    assert list(image["data"]) == ["image/png", "text/plain"]
    (found,) = STATE.findall(place["data"]["text/html"])
    assert json.loads(found)["state"] == json.loads(json.dumps(state))

    figure = {"data": [{"type": "bar"}], "layout": {"height": 300}, "config": {"displaylogo": False}}
    image, place = places._with_place(output({"image/png": "iVBO", "text/plain": ["A ", "bar"], PLOTLY: figure}))
    (found,) = STATE.findall(place["data"]["text/html"])
    assert json.loads(found)["state"] == {
        "figure": {"data": [{"type": "bar"}], "layout": {"height": 300}},
        "alt": "A bar",
    }


def test_other_outputs_stay_and_no_menu_is_spoken_of(places: ModuleType) -> None:
    words = output({"text/html": ["<p>", MOVES, "</p>"], "text/plain": "x"})
    assert places._with_place(words)[0]["data"]["text/html"] == "<p></p>"
    stream = {"output_type": "stream", "name": "stdout", "text": "x"}
    assert places._with_place(stream) == [stream]


@pytest.mark.parametrize("module", ["race", "fit", "painter"])
def test_a_picture_takes_all_that_an_address_may_set(places: ModuleType, module: str) -> None:
    for name, rule in places.rules(module).items():
        picture = places._classes()[module]()
        for value in rule.get("one_of") or [rule[end] for end in ("least", "most") if end in rule]:
            picture.set_trait(name, value)
            assert getattr(picture, name) == value
        if "key_of" in rule:
            keys = picture.state()
            for part in rule["key_of"]:
                keys = keys[part]
            assert getattr(picture, name) in keys
        if "each_of" in rule:
            picture.set_trait(name, rule["each_of"][:1] * rule["count"])
        if "some_of" in rule:
            picture.set_trait(name, list(rule["some_of"]))
