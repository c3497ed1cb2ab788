"""The controls of a panel by name: what they say, how a cell sets them, and their column beside the figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets

from tplab.checks import ArgumentError, check_count, check_number, check_one_of, check_text
from tplab.lab import style
from tplab.lab.choice import Choice
from tplab.lab.panels import html
from tplab.lab.panels.check_boxes import CheckBoxes
from tplab.shown import amount

Settings = dict[str, Any]


def wide(description_px: int = 104) -> dict[str, Any]:
    """Keywords of a control as wide as its column; a layout of its own, since panels hide single controls."""
    return {"layout": widgets.Layout(width="auto"), "style": {"description_width": f"{description_px}px"}}


def toggles(options: Sequence[str | tuple[str, str]], button_px: int = 148) -> widgets.ToggleButtons:
    """Buttons beside each other, and where a page is narrow below each other: as high as the rows that they take."""
    return widgets.ToggleButtons(
        options=options, style={"button_width": f"{button_px}px"}, layout=widgets.Layout(height="auto")
    )


def offer_links(control: widgets.Dropdown, links: Sequence[str], choice: Choice, *, cpu: str | None = None) -> None:
    """Offer the links that ranks can have.

    Args:
        control: the panel's.
        links: the ranks' own, and declared ones: these are emulated over gloo, so on GPUs there are none.
        choice: what the ranks run on.
        cpu: the one to begin with on the CPU; by default the ranks' own.
    """
    own = links[0]
    control.options = [own] if choice.on_gpus else list(links)
    control.value = own if choice.on_gpus or cpu is None else cpu


class NamedControls(dict[str, Any]):
    """Name -> widget."""

    def settings(self) -> Settings:
        """What the controls say now."""
        return {name: control.value for name, control in self.items()}

    def said(self, settings: Mapping[str, Any]) -> str:
        """``operation SUM, TP 4``: settings in the controls' own words, without those that are hidden or off."""
        return ", ".join(
            f"{self[name].description} {_said(self[name], value)}".strip()
            for name, value in settings.items()
            if self[name].layout.display != "none"
            and not getattr(self[name], "disabled", False)
            and not isinstance(self[name], widgets.Textarea)
        )

    def check(self, settings: Mapping[str, Any], offered: Mapping[str, Sequence[Any]] | None = None) -> None:
        """Raises ``ArgumentError`` for a name or a value that there is not, with those there are.

        Args:
            settings: by name.
            offered: what a control can offer, where that depends on another one.
        """
        for name, value in settings.items():
            if name not in self:
                raise ArgumentError(name, value, f"is not a setting of this panel, which has {', '.join(self)}")
            if offered is not None and name in offered:
                check_one_of(name, value, offered[name])
            else:
                check_offered(name, self[name], value)

    def put(self, settings: Mapping[str, Any]) -> None:
        """Set controls by name."""
        for name, value in settings.items():
            self[name].value = value


def _said(control: Any, value: Any) -> str:
    """A value as its control shows it."""
    if isinstance(value, list | tuple):
        between = " to " if isinstance(control, widgets.SelectionRangeSlider) else " + "
        return between.join(_said(control, each) for each in value) or "none"
    for option in getattr(control, "options", ()):
        if isinstance(option, tuple) and option[1] == value:
            return str(option[0])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return amount(value) if isinstance(value, int | float) else str(value)


def check_offered(name: str, control: Any, value: Any) -> None:
    """Raises ``ArgumentError`` for a value that ``control`` cannot take, with those it can."""
    if isinstance(control, widgets.Textarea | widgets.Text):
        check_text(name, value)
    elif isinstance(control, CheckBoxes):
        control.check(name, value)
    elif hasattr(control, "options"):
        offered = [option[1] if isinstance(option, tuple) else option for option in control.options]
        several = isinstance(control, widgets.SelectionRangeSlider)
        if several and not isinstance(value, list | tuple):
            raise ArgumentError(name, value, f"must be a list or tuple out of {', '.join(map(str, offered))}")
        for item in value if several else [value]:
            check_one_of(name, item, offered)
    elif isinstance(control, widgets.IntSlider | widgets.BoundedIntText):
        check_count(name, value, least=control.min, most=control.max)
    else:
        check_number(name, value, least=control.min, most=control.max)


def panel(title: str, left: Sequence[widgets.Widget], right: Sequence[widgets.Widget]) -> list[widgets.Widget]:
    """Heading, and below it a column of controls beside a column with the figure, which wraps on a narrow page."""
    width = style.PANEL_CONTROLS_WIDTH
    columns = [
        # No scroll bars: what fills a column and has a margin besides is some pixels wider.
        widgets.VBox([*left], layout=widgets.Layout(width=width, flex=f"0 0 {width}", overflow="hidden")),
        widgets.VBox([*right], layout=widgets.Layout(flex="1 1 0", min_width="min(520px, 100%)", overflow="hidden")),
    ]
    body = widgets.HBox(columns, layout=widgets.Layout(flex_flow="row wrap", grid_gap="18px", overflow="hidden"))
    body.add_class("tplab-columns")
    return [widgets.HTML(html.heading(title)), body]
