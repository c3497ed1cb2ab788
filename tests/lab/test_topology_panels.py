"""The panels of notebooks 01 and 07 without a browser: what a control or a click does, through the same methods."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tplab.lab import MemoryWall, Pool, ShardsPanel
from tplab.lab.panels.memory_wall import small_model
from tplab.topology import ModelSpec

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2, backend="gloo")
    yield pool
    pool.stop()


def badges(panel: object) -> list[str]:
    return [item.text for item in panel.figure.layout.annotations if item.text.startswith("<b>")]  # type: ignore[attr-defined]


class TestMemoryWall:
    def test_follows_its_sliders(self):
        wall = MemoryWall()
        before = wall.figure
        wall._named["tp"].value = 8
        assert wall.figure is not before
        assert len(wall.frame) == 8
        wall._named["pp"].value = 2
        assert len(wall.frame) == 16
        assert badges(wall) == ["<b>MODEL</b>"]

    def test_says_whether_it_fits_and_why_not(self):
        wall = MemoryWall().show(model="llama-3.1-70b", gpu="h100", batch=16, context=8192, tp=4)
        assert "fits</span>" in wall.below
        wall.show(tp=2)
        assert "does not fit</span>" in wall.below
        assert "more than the 77 GB that an engine may take" in wall.below
        assert wall.error == ""

    def test_a_cut_that_cannot_be_keeps_the_last_figure(self):
        wall = MemoryWall().show(tp=2)
        before = wall.figure
        wall.show(tp=3)
        assert "tp=3 does not divide its 64 query heads: use 1, 2, 4" in wall.error
        assert wall.figure is before
        wall.show(tp=4)
        assert wall.error == ""
        assert wall.figure is not before

    def test_fewer_bits_and_shorter_requests_shrink_what_they_should(self):
        def parts(**settings):
            frame = MemoryWall().show(**settings).frame
            return frame[["weights_GB", "kv_GB"]].iloc[0].tolist()

        weights, cache = parts()
        assert parts(cache="fp8") == pytest.approx([weights, cache / 2])
        assert parts(context=4096) == pytest.approx([weights, cache / 2])
        assert parts(batch=32) == pytest.approx([weights, cache * 2])
        fewer, same = parts(weights="fp8")
        assert weights / 2 < fewer < 0.6 * weights
        assert same == cache

    @pytest.mark.parametrize(("view", "bars"), [("along TP", 5), ("along PP", 5), ("every rank", 4)])
    def test_views(self, view, bars):
        wall = MemoryWall().show(tp=4, pp=1, view=view)
        assert len(wall.frame) == bars

    def test_every_model_and_card_on_offer_is_drawn(self):
        wall = MemoryWall()
        for model in wall._named["model"].options:
            wall.show(model=model, tp=1, pp=2)
            assert wall.error == ""
        for gpu in wall._named["gpu"].options:
            wall.show(gpu=gpu)
            assert wall.error == ""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"colour": 1}, "colour is not a control of this panel; it has model, gpu, weights, cache, batch"),
            ({"model": "llama-9"}, "model must be one of .*llama-3.1-70b.*; got 'llama-9'"),
            ({"tp": 17}, "tp must be 1 to 16; got 17"),
            ({"tp": 2.5}, "tp must be a whole number; got 2.5"),
            ({"tp": "two"}, "tp must be 1 to 16; got 'two'"),
            ({"context": 1000}, "context must be one of 128, 256"),
        ],
    )
    def test_what_is_not_offered_is_named(self, settings, message):
        wall = MemoryWall()
        before = {name: control.value for name, control in wall._named.items()}
        with pytest.raises(ValueError, match=message):
            wall.show(**settings)
        assert {name: control.value for name, control in wall._named.items()} == before


class TestShards:
    def test_builds_draws_and_explains(self, pool):
        panel = ShardsPanel(pool).configure(tp=3, pp=2, layers=5, batch=2, context=16)
        panel.run()
        assert panel.frame["layout"].tolist() == ["TP 1 x PP 1"] + ["TP 3 x PP 2"] * 6
        assert panel.frame["exact"].all()
        assert set(panel.frame["built_on"]) == {0, 1}
        assert panel.frame["layers"].tolist() == [5, 2, 2, 2, 3, 3, 3]
        assert badges(panel) == ["<b>LIVE gloo · 2 ranks</b>"]
        assert "equal the formula, byte for byte" in panel._below.value
        panel.configure(batch=4)
        assert "Settings changed" in panel._ribbon.value

    def test_one_rank_alone(self, pool):
        panel = ShardsPanel(pool).configure(tp=1, pp=1, layers=1, batch=1, context=16)
        panel.run()
        assert len(panel.frame) == 1
        assert panel.frame["exact"].all()

    def test_a_cut_that_cannot_be_is_shown_and_raised(self, pool):
        panel = ShardsPanel(pool).configure(tp=4)
        with pytest.raises(ValueError, match="tp=4 does not divide its 6 query heads"):
            panel.run()
        assert "does not divide" in panel._error.value
        with pytest.raises(ValueError, match="pp=6 stages need a layer each"):
            panel.configure(tp=1, pp=6, layers=3).run()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"speed": 1}, "speed is not a setting of this panel; it has shape, layers, tp, pp, batch, context"),
            ({"shape": "round"}, "shape must be one of 6 heads, 2 key-value"),
            ({"tp": 7}, "tp must be 1 to 6; got 7"),
        ],
    )
    def test_what_is_not_offered_is_named(self, pool, settings, message):
        with pytest.raises(ValueError, match=message):
            ShardsPanel(pool).configure(**settings)

    def test_the_small_models_vocabulary_divides_by_nothing(self):
        for shape in ("6 heads, 2 key-value", "12 heads, 1 key-value"):
            spec = ModelSpec.from_config(small_model(shape).to_hf())
            assert all(spec.vocab_size % n for n in range(2, 7))
            assert spec.num_heads * spec.head_dim == spec.hidden_size


def test_the_panels_need_no_torch():
    code = (
        "import sys; from tplab.lab import MemoryWall, Pool, ShardsPanel; pool = Pool(2, backend='gloo');"
        "MemoryWall().show(tp=8), ShardsPanel(pool); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
