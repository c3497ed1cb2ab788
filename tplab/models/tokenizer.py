"""Text to tokens and back, for the model that comes with tplab: byte-pair encoding over the characters that it knows.

The file is a ``tokenizer.json`` as the package ``tokenizers`` writes it, and transformers reads the same tokens from
it. Read here all the same: neither package is needed then, and a notebook's kernel, which shows text as it comes, would
wait seconds for them. Only this one kind is read; a checkpoint with another is left to transformers.

Source of the algorithm: Sennrich and others, "Neural Machine Translation of Rare Words with Subword Units" (2016),
https://arxiv.org/abs/1508.07909.

Pure: no torch.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tplab.checks import ArgumentError, check_text
from tplab.files import read_json
from tplab.models.records import CheckpointError
from tplab.shown import listed

FILE = "tokenizer.json"
PARAGRAPH = "\n"
"""Begins and ends a paragraph; token 0."""
PATTERN = r" ?[A-Za-z]+|\n| ?[^A-Za-z \n]+| "
"""Text is cut into these before anything is merged: a word with the space before it, punctuation, a paragraph's end."""
_MOST_BYTES = 1 << 20
_MODEL = {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False, "ignore_merges": False}
_AROUND = {
    "normalizer": None,
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
    "decoder": {"type": "Fuse"},
}
"""What a file of the kind that is read here says."""


class Tokenizer:
    """Tokens of texts.

    Args:
        pieces: the text of each token.
        merges: pairs of pieces that become one, the first ones first.
    """

    def __init__(self, pieces: Sequence[str], merges: Iterable[tuple[str, str]]) -> None:
        self.pieces = tuple(pieces)
        self._ids = {piece: number for number, piece in enumerate(self.pieces)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._merged = lru_cache(maxsize=65_536)(self._merge)

    @classmethod
    def of(cls, folder: "str | Path") -> "Tokenizer | None":
        """The one in the folder of a checkpoint; None if there is none, or one of another kind.

        Raises ``CheckpointError`` for a file that is damaged.
        """
        path = Path(folder) / FILE
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        try:
            found = read_json(path, limit=_MOST_BYTES)
        except (ValueError, OSError) as error:
            said = f"no tokenizer can be read from {path.parent}: {error}"
            raise CheckpointError(f"{said}. Fetch its file again, or give token ids") from error
        if not _is_of_this_kind(found):
            return None
        try:
            vocabulary = found["model"]["vocab"]
            pieces = sorted(vocabulary, key=vocabulary.__getitem__)
            merges = [(str(first), str(second)) for first, second in found["model"]["merges"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged: no vocabulary can be read from it ({error!r})") from error
        known = set(pieces)
        if [vocabulary[piece] for piece in pieces] != list(range(len(pieces))) or not known.issuperset(
            first + second for first, second in merges
        ):
            raise CheckpointError(
                f"{path} is damaged: its tokens are not numbered 0 to {len(pieces) - 1}, or some lack"
            )
        return cls(pieces, merges)

    def encode(self, text: str, *, name: str = "text") -> list[int]:
        """Token ids, with the mark of a paragraph in front, as the model has learned.

        Raises ``ArgumentError`` for a text with characters that are in no token; ``name`` is what it calls the text.
        """
        unknown = self.unknown(check_text(name, text))
        if unknown:
            rule = f"has {listed(unknown)}, which the model has never read: it knows {self.alphabet()}"
            raise ArgumentError(name, text, rule)
        return [self._ids[PARAGRAPH], *(token for word in re.findall(PATTERN, text) for token in self._merged(word))]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens."""
        return "".join(self.pieces[token] for token in tokens)

    def unknown(self, text: str) -> list[str]:
        """Characters that are in no token, each once, in quotation marks or by their number."""
        return [repr(each) for each in dict.fromkeys(text) if each not in self._ids]

    def alphabet(self) -> str:
        """The characters it knows, in words."""
        single = [piece for piece in self.pieces if len(piece) == 1 and not piece.isalnum() and not piece.isspace()]
        return f"unaccented letters, digits, spaces and {' '.join(single)}"

    def _merge(self, word: str) -> tuple[int, ...]:
        parts = list(word)
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            merged: list[str] = []
            for part in parts:  # all places of the pair at once, from the left
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        return tuple(self._ids[part] for part in parts)


def _is_of_this_kind(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    model, after = found.get("model"), found.get("post_processor")
    return (
        isinstance(model, dict)
        and {name: model.get(name) for name in _MODEL} == _MODEL
        and {name: found.get(name) for name in _AROUND} == _AROUND
        and isinstance(after, dict)
        and after.get("special_tokens") == {PARAGRAPH: {"id": PARAGRAPH, "ids": [0], "tokens": [PARAGRAPH]}}
    )
