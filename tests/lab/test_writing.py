"""The panel that writes words in every layout, and what it says of them."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tplab.lab import Pool, WritingPanel
from tplab.lab.pictures.writing import Writing, explain_writing
from tplab.models import Tokenizer, trained_model

pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def panel(no_ranks_left: None) -> Iterator[WritingPanel]:
    pool = Pool(num_ranks=2, backend="gloo")
    yield WritingPanel(pool).configure(new_tokens=16)
    pool.stop()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer.of(trained_model())
    assert made is not None
    return made


def test_a_run_fills_a_column_per_layout(panel: WritingPanel) -> None:
    panel.run()
    assert list(panel.texts) == ["TP 1 × PP 1", "TP 2 × PP 1", "TP 1 × PP 2"]
    assert len(set(panel.texts.values())) == 1
    columns = panel.writing.columns
    assert [each["name"] for each in columns] == list(panel.texts)
    for column, made in zip(columns, panel.generations, strict=True):
        assert "".join(column["tokens"]) == panel.texts[column["name"]]
        assert len(column["at"]) == len(column["tokens"]) == len(made.tokens[0])
        assert column["total"] == pytest.approx(1e3 * made.total_s, abs=0.01)
        assert len(column["lanes"]) == made.layout.tp * made.layout.pp
        starts = [start for lane in column["lanes"] for spans in lane["spans"].values() for start, _ in spans]
        assert 0 <= min(starts) <= max(starts) <= column["total"]
    assert "collective" in columns[1]["lanes"][0]["spans"]
    assert "wait" in columns[2]["lanes"][1]["spans"]
    tokens = len(panel.generations[0].tokens[0])
    assert panel.writing.verdict == f"TP 1 × PP 1, TP 2 × PP 1 and TP 1 × PP 2 wrote the same {tokens} tokens."
    assert panel.figure is not None
    assert panel.frame["pp"].tolist() == [1, 1, 2]
    # The reader's own words, as a word processor writes them; the likeliest tokens now.
    panel.configure(prompt="“Indeed!” said Emma, ", temperature=0.0)
    panel.run()
    assert panel.writing.prompt == '"Indeed!" said Emma,'
    assert panel.generations[0].margins is not None


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        (" \n ", "prompt must have a word: write how the text begins"),
        ("Zürich", "prompt has 'ü', which the model has never read"),
        ("and so on " * 100, "prompt has 301 tokens, and the model takes 256 with the new ones: shorten it"),
    ],
)
def test_prompts_that_cannot_work_are_refused_in_words(panel: WritingPanel, prompt: str, error: str) -> None:
    before = panel.configure(prompt="She was").settings()
    with pytest.raises(ValueError, match=error):
        panel.configure(prompt=prompt).run()
    assert error in panel._error.value.replace("&#x27;", "'")
    panel.configure(**before)


def test_a_stop_leaves_what_was_written_and_says_so(panel: WritingPanel) -> None:
    panel.configure(prompt="She was", new_tokens=128)
    panel._begin()
    wait_until = time.monotonic() + 60
    while not panel.writing.verdict.endswith("writing.") and panel.state.busy and time.monotonic() < wait_until:
        time.sleep(0.002)
    panel.stop()
    assert panel._ended.wait(60)
    if panel.generations:  # on a quiet machine all of it takes half a second
        pytest.skip("written before it could be stopped")
    assert panel.writing.verdict.endswith("not finished.")
    assert panel.writing.prompt == "She was"
    assert "not finished" in "".join(map(str, panel.writing.still()))
    panel.configure(new_tokens=16)


def test_an_example_fills_the_prompt(panel: WritingPanel) -> None:
    panel.configure(example=panel._example.options[1])
    assert panel.settings()["prompt"] == panel._example.options[1]
    assert "example" not in panel.measures(panel.settings())


def test_a_difference_is_said_with_its_margin(panel: WritingPanel, tokenizer: Tokenizer) -> None:
    panel.configure(temperature=0.0, prompt="She was").run()
    one, two, three = panel.generations
    assert one.margins is not None
    other = [*two.tokens[0]]
    other[2] = tokenizer.encode(" cat")[1] if other[2] != tokenizer.encode(" cat")[1] else 5
    made = [one, replace(two, tokens=[other]), three]
    said = explain_writing(made, tokenizer, "bfloat16")
    ours, theirs = tokenizer.pieces[other[2]], tokenizer.pieces[one.tokens[0][2]]
    assert said.startswith(f"TP 2 × PP 1 parts from TP 1 × PP 1 at token 3: {ours!r} instead of {theirs!r}.")
    assert "apart there, in logits" in said
    assert "rounding to bfloat16" in said
    assert "TP 1 × PP 2 parts" not in said
    # A draw has no margins; and one layout has nothing to be compared with.
    assert "in logits" not in explain_writing([replace(each, margins=None) for each in made], tokenizer, "bfloat16")
    assert explain_writing(made[:1], tokenizer, "float32") == f"TP 1 × PP 1 wrote {len(one.tokens[0])} tokens."
    picture = Writing()
    picture.show(made, tokenizer, "bfloat16")
    assert picture.verdict == said
