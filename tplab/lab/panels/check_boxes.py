"""Several out of a few, a box to tick for each.

Not a ``SelectMultiple``: that one needs Ctrl for a second choice, which nothing says, and offers what cannot work.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import traitlets

from tplab.checks import ArgumentError, check_one_of
from tplab.lab.panels import html


class CheckBoxes(widgets.VBox):
    """``value`` is what is ticked, a tuple in the order of the options; empty if nothing is.

    Args:
        options: values, or pairs of a text and a value.
        value: what is ticked at first.
        description: heading of the boxes.
    """

    value = traitlets.Tuple()

    def __init__(self, options: Sequence[Any], *, value: Sequence[Any], description: str) -> None:
        pairs = [option if isinstance(option, tuple) else (_text(option), option) for option in options]
        self.description = description
        self._refused: Mapping[Any, str] = {}
        self._settling = False
        self._boxes = {
            each: widgets.Checkbox(
                description=text,
                indent=False,
                layout=widgets.Layout(width="auto", height="24px", margin="0 12px 0 2px"),
                style={"description_width": "initial"},
            )
            for text, each in pairs
        }
        self._offered = widgets.Box(layout=widgets.Layout(flex_flow="row wrap", overflow="visible"))
        self._withheld = widgets.VBox(layout=widgets.Layout(overflow="visible"))
        boxes = [widgets.HTML(html.quiet(description)), self._offered, self._withheld]
        super().__init__(boxes, layout=widgets.Layout(overflow="visible"))
        self.add_class("tplab-check-boxes")
        for box in self._boxes.values():
            box.observe(lambda _: self._ticked(), names="value")
        self.observe(lambda _: self._tick(), names="value")
        self.refuse({})
        self.value = tuple(value)

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """Pairs of a text and a value."""
        return tuple((box.description, each) for each, box in self._boxes.items())

    def refuse(self, reasons: Mapping[Any, str]) -> None:
        """Grey out these values, and say why; they are not ticked any more. If nothing else was, the first other is."""
        self._refused = reasons
        for each, box in self._boxes.items():
            box.disabled = each in reasons
        self._offered.children = [box for each, box in self._boxes.items() if each not in reasons]
        below = []
        for reason in dict.fromkeys(reasons.values()):
            greyed = [box for each, box in self._boxes.items() if reasons.get(each) == reason]
            row = widgets.Box(greyed, layout=widgets.Layout(flex_flow="row wrap", overflow="visible"))
            below += [widgets.HTML(html.quiet(f"{reason}:")), row]
        self._withheld.children = below
        kept = tuple(each for each in self.value if each not in reasons)
        if self.value and not kept:
            kept = tuple(each for each in self._boxes if each not in reasons)[:1]
        self.value = kept

    def check(self, name: str, values: Any) -> None:
        """Raises ``ArgumentError`` for what is no list of some of the options, and for what is greyed out now."""
        if not isinstance(values, list | tuple):
            raise ArgumentError(name, values, f"must be a list or tuple out of {', '.join(map(str, self._boxes))}")
        for each in values:
            check_one_of(name, each, self._boxes)
            if each in self._refused:
                raise ArgumentError(name, each, f"cannot be chosen here: {self._refused[each]}")

    @traitlets.validate("value")
    def _in_order(self, proposal: Any) -> tuple[Any, ...]:
        self.check("value", proposal["value"])
        return tuple(each for each in self._boxes if each in proposal["value"])

    def _ticked(self) -> None:
        if not self._settling:
            self.value = tuple(each for each, box in self._boxes.items() if box.value)

    def _tick(self) -> None:
        self._settling = True
        try:
            for each, box in self._boxes.items():
                box.value = each in self.value
        finally:
            self._settling = False


def _text(option: Any) -> str:
    return f"{option:,}" if isinstance(option, int) else str(option)
