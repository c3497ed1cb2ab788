"""Layouts that write the same text, token by token on one clock."""

from collections.abc import Sequence
from html import escape
from typing import Any

import traitlets

from tplab.lab.panels import html as panel_html
from tplab.lab.pictures.picture import Picture
from tplab.lab.still import Part
from tplab.models.beside import BesideRun
from tplab.models.result import Generation
from tplab.models.tokenizer import Tokenizer
from tplab.shown import counted, number, time_text

_KINDS = {"prefill": "compute", "decode": "compute", "collective": "collective", "wait": "wait"}


class Writing(Picture):
    """A column of tokens per layout, equal ones lit, with what each rank did below; played on one clock when all are
    there."""

    module = "writing"
    caption = "Layouts that write the same text"

    prompt = traitlets.Unicode("").tag(sync=True)
    """What they all continue."""
    columns = traitlets.List(traitlets.Dict()).tag(sync=True)
    """The layouts: of each ``name``, ``how`` (it is cut, in words), ``tokens`` (texts), ``note``; once it is known when
    each came, ``at`` and ``total`` (milliseconds), and ``lanes`` (of each rank: ``name``, and ``spans`` by kind)."""
    verdict = traitlets.Unicode("Nothing is written yet.").tag(sync=True)
    """Whether they are the same, in words."""

    def still(self) -> Sequence[Part]:
        """The picture, and its texts for who does not see it."""
        cells = [
            f"<p><b>{escape(each['name'])}</b><br>{escape(self.prompt)}<u>{escape(''.join(each['tokens']))}</u>"
            f"<br>{escape(each['note'])}</p>"
            for each in self.columns
        ]
        texts = f"<details><summary>As text</summary>{''.join(cells)}</details>" if cells else ""
        return [*super().still(), panel_html.quiet(self.verdict), texts]

    def show_begun(self, run: BesideRun, tokenizer: Tokenizer, layouts: Sequence[tuple[int, int]]) -> None:
        """What has come so far of a run that is under way, or has ended before its time."""
        at_work = max((place for place, tokens in enumerate(run.tokens) if tokens[0]), default=0)
        states = ["written" if place < at_work else "" for place in range(len(layouts))]
        states[at_work] = "writing" if not run.done() else "not finished"
        self.columns = [
            _head(*layout) | {"tokens": _texts(tokenizer, tokens[0]), "note": state}
            for layout, tokens, state in zip(layouts, run.tokens, states, strict=True)
        ]
        self.verdict = f"{name_of_layout(*layouts[at_work])}: {states[at_work]}."

    def show(self, generations: Sequence[Generation], tokenizer: Tokenizer, dtype: str) -> None:
        """What all layouts wrote, and when: the first sequence of each, in numbers of this type."""
        self.columns = [_column(each, tokenizer) for each in generations]
        self.verdict = explain_writing(generations, tokenizer, dtype)


def name_of_layout(tp: int, pp: int) -> str:
    """``TP 2 × PP 1``."""
    return f"TP {tp} × PP {pp}"


def explain_writing(generations: Sequence[Generation], tokenizer: Tokenizer, dtype: str) -> str:
    """Sentences on whether layouts wrote the same: the first sequence of each, beside the first layout's."""
    first, *others = generations
    reference = first.tokens[0]
    name, *names = (name_of_layout(each.layout.tp, each.layout.pp) for each in generations)
    said = []
    for other, each in zip(names, others, strict=True):
        pairs = zip(reference, each.tokens[0], strict=False)
        place = next((at for at, (theirs, ours) in enumerate(pairs) if theirs != ours), None)
        if place is not None:
            ours, theirs = (repr(tokenizer.pieces[tokens[place]]) for tokens in (each.tokens[0], reference))
            said.append(f"{other} parts from {name} at token {place + 1}: {ours} instead of {theirs}.")
            if first.margins is not None:
                said.append(
                    f"For {name} the two likeliest were {number(first.margins[0][place])} apart there, in logits."
                )
    if said:
        said.append(
            f"Layouts add up in another order, and rounding to {dtype} may then choose the other of two tokens that "
            "are almost as likely. What follows a first difference is another text."
        )
        return " ".join(said)
    count = counted(len(reference), "token")
    return (
        f"{name} wrote {count}."
        if not names
        else f"{', '.join([name, *names[:-1]])} and {names[-1]} wrote the same {count}."
    )


def _texts(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    return [tokenizer.pieces[token] for token in tokens]


def _head(tp: int, pp: int) -> dict[str, Any]:
    parts = [f"every layer cut in {tp}"] * (tp > 1) + [f"the layers in {pp} stages"] * (pp > 1)
    return {"name": name_of_layout(tp, pp), "how": ", ".join(parts) or "the whole model on one rank"}


def _column(made: Generation, tokenizer: Tokenizer) -> dict[str, Any]:
    tp, pp = made.layout.tp, made.layout.pp
    at = made.token_s[0]
    at_ms = [round(1e3 * time, 2) for time in at]
    lanes = []
    for rank, activities in enumerate(made.spans):
        spans: dict[str, list[list[float]]] = {}
        for each in activities:
            times = [round(1e3 * (time - made.start_s), 2) for time in (each.start_s, each.end_s)]
            spans.setdefault(_KINDS[each.kind], []).append(times)
        lanes.append({"name": f"rank {rank}", "spans": spans})
    each_us = 1e6 * (at[-1] - at[0]) / max(1, len(at) - 1)
    return _head(tp, pp) | {
        "tokens": _texts(tokenizer, made.tokens[0]),
        "note": f"{counted(len(at), 'token')} in {time_text(1e6 * made.total_s)}: {time_text(each_us)} per token",
        "at": at_ms,
        "total": at_ms[-1],  # rounded as they are: the last token is there at the end
        "lanes": lanes,
    }
