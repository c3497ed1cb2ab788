"""What ``jupyter nbconvert --to html`` makes of the stored notebooks: whole pages."""

import logging
import re
from pathlib import Path

import nbformat
import pytest
from nbconvert.exporters import HTMLExporter

from tplab.lab.saving import PLOTLY

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LINKED = re.compile(r'<img[^>]* src="(?!data:|https?:)([^"]+)"')


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_has_every_figure_and_no_fault(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        page, resources = HTMLExporter().from_filename(str(path))
    # Its template leaves out the alternative text that the notebook has.
    faults = [each for each in caplog.messages if not each.startswith("Alternative text is missing")]
    assert faults == []  # an output that cannot be shown
    assert "model not found" not in page
    assert "Loading widget" not in page
    notebook = nbformat.read(path, as_version=4)
    data = [output.data for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    images = sum("image/png" in each for each in data)
    assert images >= sum(PLOTLY in each for each in data) > 0
    assert page.count('src="data:image/png;base64,') + len(resources.get("outputs", {})) >= images
    for link in LINKED.findall(page):
        assert (path.parent / link).is_file(), link
