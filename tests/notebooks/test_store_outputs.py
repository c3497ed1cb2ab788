"""What is stored of a run: pictures for readers without a kernel, the same ones for the same figures."""

import copy
import io
from base64 import b64decode
from collections.abc import Iterator

import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from tests.notebooks.images import Draw, drawing
from tests.notebooks.store_outputs import finish, stored_images
from tplab.lab.pictures import Race
from tplab.lab.saving import MARK, PICTURE, PLOTLY, WIDGET_VIEW
from tplab.lab.still import figure_bundle
from tplab.lab.style import COLLECTIVE, card

pytestmark = pytest.mark.browser


@pytest.fixture
def draw() -> Iterator[Draw]:
    with drawing() as draw:
        yield draw


def executed():
    figure = card(go.Figure(go.Bar(x=[1, 2], y=[3, 4], marker_color=COLLECTIVE)), title="A <b>bar</b>", badge="MODEL")
    plain = figure_bundle(figure)
    del plain["text/plain"]
    mark = {MARK: {"still": "some-id"}}
    _, _, frame = Race().still()
    outputs = [
        new_output("display_data", {WIDGET_VIEW: {"model_id": "some-id"}}),
        new_output("display_data", {"text/html": "<div>Race</div>" + frame, "text/plain": "Race"}, metadata=mark),
        new_output("display_data", {"text/html": ""}, metadata={MARK: {"still": "some-id", "empty": True}}),
    ]
    return new_notebook(
        cells=[new_code_cell(outputs=outputs), new_code_cell(outputs=[new_output("display_data", plain)])],
        metadata={"widgets": {}, "language_info": {"name": "python", "version": "3.99"}},
    )


def test_a_stored_notebook_is_whole_and_stays_the_same(draw: Draw) -> None:
    notebook = executed()
    run = copy.deepcopy(notebook)
    finish(notebook, draw, {})
    words, picture = notebook.cells[0].outputs
    assert words.data["text/html"] == "<div>Race</div>"
    assert words.metadata[MARK] == {"still": True}
    assert picture.metadata["image/png"].alt == "All-reduce race"
    assert picture.data[PICTURE]["picture"] == "race"
    assert picture.data[PICTURE]["state"] == Race().still_state()  # also its links' names, with characters of all kinds
    (figure,) = notebook.cells[1].outputs
    assert figure.data["text/plain"] == figure.metadata["image/png"].alt == "A bar"
    assert figure.data[PLOTLY]
    for output in (picture, figure):
        about = output.metadata["image/png"]
        image = Image.open(io.BytesIO(b64decode(output.data["image/png"])))
        assert image.width == pytest.approx(1.5 * about.width, abs=2)
        assert image.height == pytest.approx(1.5 * about.height, abs=2)
        assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
        assert len(output.data["image/png"]) < 120_000
    colours = Image.open(io.BytesIO(b64decode(figure.data["image/png"]))).convert("RGB").getcolors(10_000)
    red = tuple(bytes.fromhex(COLLECTIVE[1:]))
    reddest = max(colours, key=lambda each: -sum(abs(a - b) for a, b in zip(each[1], red, strict=True)))
    assert reddest[0] > 9999
    assert max(abs(a - b) for a, b in zip(reddest[1], red, strict=True)) < 6
    assert notebook.metadata == {"language_info": {"name": "python"}}

    finish(run, draw, {})
    # Drawn again, it is the same.
    assert [cell.outputs for cell in run.cells] == [cell.outputs for cell in notebook.cells]
    kept = {key: ("kept", size) for key, (_, size) in stored_images(notebook).items()}
    again = executed()
    finish(again, draw, kept)
    assert again.cells[1].outputs[0].data["image/png"] == "kept"
