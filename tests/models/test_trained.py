"""The model that comes with tplab: it loads, it writes words, and the same ones in every layout."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tplab.cluster import RunStopped
from tplab.models import ModelConfig, Tokenizer, generate, layouts_of, submit_beside, trained_model

FOLDER = trained_model()
PROMPT = "It was a truth universally acknowledged, that"
COMMON = """
the of and to a in was her it that she he had be as for not with his you but so very at by all him have which is on this
could been they were would what no or must from an their them if more much such any than every there when who will one
do did own little good great some other should are might my me your said himself herself
"""
"""Words that every second or third word of any English text is one of."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer.of(FOLDER)
    assert made is not None
    return made


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_layout_writes_the_same_words(num_ranks: int, tokenizer: Tokenizer, clusters: Any) -> None:
    config = ModelConfig.from_hf(FOLDER)
    layouts = layouts_of(config, num_ranks)
    assert layouts == {2: [(1, 1), (2, 1), (1, 2)], 4: [(1, 1), (4, 1), (2, 2), (1, 4)]}[num_ranks]
    asked = {"max_new_tokens": 60, "temperature": 0.5, "seed": 3, "dtype": "float32"}
    run = submit_beside(clusters[num_ranks], FOLDER, [tokenizer.encode(PROMPT)], layouts, **asked)
    made = run.result()
    assert [(each.layout.tp, each.layout.pp) for each in made] == layouts
    assert {tuple(each.tokens[0]) for each in made} == {tuple(made[0].tokens[0])}
    assert [tokens[0] for tokens in run.tokens] == [each.tokens[0] for each in made]  # as they came
    assert made[0].provenance["num_ranks"] == 1
    assert made[-1].provenance["num_ranks"] == num_ranks
    for each in made:
        assert each.token_s[0] == sorted(each.token_s[0])
        assert each.token_s[0][0] == each.ttft_s[0]
        assert each.token_s[0][-1] == each.total_s
    words = re.findall("[a-z]+", tokenizer.decode(made[0].tokens[0]).lower())
    assert len(words) > 20
    assert sum(word in COMMON.split() for word in words) > len(words) / 4


def test_layouts_are_those_that_the_model_can_be_cut_to() -> None:
    config = ModelConfig.from_hf(FOLDER)  # 4 heads, 8 layers
    assert layouts_of(config, 1) == [(1, 1)]
    assert layouts_of(config, 3) == [(1, 1), (1, 3)]
    assert layouts_of(config, 8) == [(1, 1), (4, 2), (2, 4), (1, 8)]
    assert layouts_of(config, 16) == [(1, 1), (4, 4), (2, 8)]
    assert layouts_of(config, 11) == [(1, 1)]


def test_texts_need_no_other_tokenizer(tokenizer: Tokenizer, clusters: Any) -> None:
    from_text = generate(clusters[1], FOLDER, PROMPT, max_new_tokens=8)
    from_ids = generate(clusters[1], FOLDER, tokenizer.encode(PROMPT), max_new_tokens=8)
    assert from_text.tokens == from_ids.tokens
    assert from_text.texts == [tokenizer.decode(from_ids.tokens[0])]


def test_transformers_reads_the_same_model(tokenizer: Tokenizer, clusters: Any) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(FOLDER)
    ids = theirs(PROMPT)["input_ids"]
    assert ids == tokenizer.encode(PROMPT)
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    out = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :].tolist()
    ours = generate(clusters[2], FOLDER, [ids], tp=2, max_new_tokens=16, dtype="float32").tokens[0]
    assert ours == out
    assert theirs.decode(out, skip_special_tokens=False) == tokenizer.decode(ours)


def test_a_run_that_is_stopped_keeps_what_came(tokenizer: Tokenizer, clusters: Any) -> None:
    layouts = [(1, 1), (2, 1)] * 40
    seen = []

    def on_report(report: Any) -> None:
        seen.append(report)
        if run.tokens[1][0]:
            run.stop()

    run = submit_beside(
        clusters[2], FOLDER, [tokenizer.encode(PROMPT)], layouts, max_new_tokens=20, on_report=on_report
    )
    with pytest.raises(RunStopped):
        run.result()
    assert run.tokens[0][0]
    assert run.tokens[-1] == [[]]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"layouts": [(1, 1), (3, 1)]}, "tp must divide the model's 4 query heads"),
        ({"layouts": [(2, 1)]}, r"layouts must each be of one rank, or of all 4 of the cluster; got \(2, 1\)"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ({"max_new_tokens": 300}, "the model takes 256"),
        ({"prompts": [[1024]]}, "tokens are 0 to 1023"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(changes: dict[str, Any], error: str, clusters: Any) -> None:
    asked: dict[str, Any] = {"prompts": [[0, 5]], "layouts": [(4, 1)], "max_new_tokens": 4} | changes
    with pytest.raises(ValueError, match=error):
        submit_beside(clusters[4], FOLDER, **asked)


def test_it_is_small_and_the_page_about_it_is_right() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert sum(files.values()) < 3_000_000
    page = (Path(__file__).parents[2] / "docs/trained-model.md").read_text("utf-8")
    config = ModelConfig.from_hf(FOLDER)
    assert f"{config.total_params:,} parameters" in page
    assert json.loads((FOLDER / "config.json").read_text())["torch_dtype"] == "bfloat16"
