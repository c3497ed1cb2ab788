"""The training of the model that comes with tplab, in small; and the text that it is trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.novels import paragraphs
from tests.training.train import CONFIG, Trained, Writer, bits_per_byte, compressed_bits_per_byte, ids_of, split, train
from tplab.models import ModelConfig, Tokenizer, generate, save_checkpoint, trained_model

TEXT = "".join(
    f"The {colour} {animal} sat on the {place}, and the {animal} was {mood}.\n"
    for colour in ("black", "white", "grey", "brown")
    for animal in ("cat", "dog", "hen", "cow")
    for place in ("mat", "wall", "roof", "grass")
    for mood in ("happy", "cold", "hungry", "asleep")
)
SMALL = replace(CONFIG, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16)


def test_paragraphs_are_lines_of_plain_ascii() -> None:
    lines = [
        "EMMA",
        "",
        "CHAPTER I",
        "",
        "",
        "“It’s _very_",
        " fine”—she said,  naïvely.",
        "",
        "VOLUME II",
        "",
        "By",
        "",
    ]
    assert paragraphs(lines) == ['"It\'s very fine"--she said, naively.', "By"]


def test_what_is_kept_back_is_not_trained_on() -> None:
    text = "".join(f"paragraph {number}\n" for number in range(450))
    seen, unseen = split(text)
    assert unseen == "".join(f"paragraph {number}\n" for number in [*range(190, 200), *range(390, 400)])
    assert sorted((seen + unseen).splitlines()) == sorted(text.splitlines())


def test_a_few_steps_learn_a_small_text(tmp_path: Path, clusters: Any) -> None:
    tokenizer = Tokenizer.of(trained_model())
    assert tokenizer is not None
    ids = ids_of(tokenizer, TEXT)
    torch.manual_seed(0)
    model = Writer(SMALL, dropout=0.0)
    before = bits_per_byte(model, ids, len(TEXT), length=32)
    assert before == pytest.approx(10 * len(ids) / len(TEXT), rel=0.05)  # of 1,024 tokens each as likely as another
    losses = [loss for _, loss in train(model, ids, steps=60, batch=8, length=32, peak=1e-2, every=20)]
    assert losses == sorted(losses, reverse=True)
    after = bits_per_byte(model, ids, len(TEXT), length=32)
    assert after < 0.2 * before
    # The very text that is learned is what xz has read: the baseline is low.
    assert compressed_bits_per_byte(TEXT, TEXT) < 0.1
    # What is saved is the model: the engine continues as the text does.
    save_checkpoint(tmp_path, SMALL, Trained(model), dtype="float32")
    assert ModelConfig.from_hf(tmp_path) == SMALL.in_dtype("float32")
    prompt = tokenizer.encode("The grey hen sat on the roof, and the")
    made = generate(clusters[1], tmp_path, [prompt], max_new_tokens=len(tokenizer.encode(" dog was")) - 1)
    assert tokenizer.decode(made.tokens[0]) in (" cat was", " dog was", " hen was", " cow was")
