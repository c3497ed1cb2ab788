"""Link the first use of a word in each notebook to the glossary.

``python tests/notebooks/link_glossary.py notebooks/*.ipynb``. Words and short forms come from
``notebooks/glossary.md``; the short form is what a pointer that rests on the link shows. Links that stand there already
are made anew, so the tool can be run again after any change of the text.
"""

import re
import sys
from pathlib import Path

import nbformat

from tplab.files import replacing

GLOSSARY = Path(__file__).parents[2] / "notebooks" / "glossary.md"
OTHER_FORMS = {
    "tensor parallelism": ["tensor-parallel", "TP"],
    "pipeline parallelism": ["PP"],
    "tensor": [],
    "KV cache": ["key-value cache"],
    "point-to-point": ["point to point"],
    "collective": ["collectives"],
    "decoding ring": ["ring of decoding", "decode ring"],
    "bf16": ["bfloat16"],
    "quantised all-reduce": ["int8 all-reduce"],
}
ORDINARY = {"head", "layer", "stage", "ring", "token", "decode", "flip", "overlap"}
"""Words that are linked only as they stand in the glossary (and in the plural), not with a capital letter."""
MEANT = {"ring": "decoding ring"}
"""In a notebook that uses the longer word, the shorter one stands for it, and is not linked to its own entry."""
# What is left alone: code, what is folded away, pictures, other links, tags, headings.
LEFT_ALONE = re.compile(
    r'```.*?```|<details>.*?</details>|`[^`]*`|!?\[[^\]]*\]\((?:"[^"]*"|[^)"])*\)|<[^>]*>|^#.*?$|\$[^$]*\$',
    re.S | re.M,
)
LINK = re.compile(r'\[([^\]]+)\]\(glossary\.md#[^ ]+ "[^"]*"\)')


def entries(text: str) -> dict[str, str]:
    """Short form of every word: the first sentence below its heading."""
    found = {}
    for part in re.split(r"^### ", text, flags=re.M)[1:]:
        word, _, body = part.partition("\n")
        sentence = re.match(r".*?\.(?=\s|$)", " ".join(body.replace("**", "").replace('"', "").split()))
        assert sentence is not None, f"{word}: no sentence below the heading"
        found[word] = sentence[0]
    return found


def pattern(word: str) -> re.Pattern[str]:
    """The word in the forms in which prose has it."""
    forms = []
    for form in (word, *OTHER_FORMS.get(word, [])):
        flexible = re.escape(form).replace(r"\ ", r"[\s-]").replace(r"\-", r"[\s-]")
        first = form[0]
        if first.islower() and word not in ORDINARY:
            flexible = f"[{first}{first.upper()}]{flexible[1:]}"
        forms.append(flexible)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(forms)})(?:e?s)?(?![\w-])")


def linked(notebook: nbformat.NotebookNode, glossary: dict[str, str]) -> nbformat.NotebookNode:
    """Link the first use of every word in the notebook's text; links to the glossary that were there are replaced."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    for cell in cells:
        cell.source = LINK.sub(r"\1", cell.source)
    # Longer words first: "rank correlation" is no use of "rank".
    for word in sorted(glossary, key=len, reverse=True):
        meant = pattern(MEANT[word]) if word in MEANT else None
        if meant and any(meant.search(LINK.sub(r"\1", cell.source)) for cell in cells):
            continue
        for cell in cells:
            free = LEFT_ALONE.sub(lambda match: " " * len(match[0]), cell.source)
            use = pattern(word).search(free)
            if use:
                link = f'[{cell.source[slice(*use.span())]}](glossary.md#{word.replace(" ", "-")} "{glossary[word]}")'
                cell.source = cell.source[: use.start()] + link + cell.source[use.end() :]
                break
    return notebook


if __name__ == "__main__":
    words = entries(GLOSSARY.read_text("utf-8"))
    for argument in sys.argv[1:]:
        with replacing(Path(argument)) as partial:
            nbformat.write(linked(nbformat.read(argument, as_version=4), words), partial)
