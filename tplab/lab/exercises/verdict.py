"""What a checker says, in plain words."""

from typing import NamedTuple


class Verdict(NamedTuple):
    """What a checker found."""

    passed: bool
    message: str

    def _repr_html_(self) -> str:
        from html import escape

        from tplab.lab import style
        from tplab.lab.panels import html

        pill = html.pill("passed", style.WEIGHT_GRADIENT) if self.passed else html.pill("not yet", style.COLLECTIVE)
        return f"{pill}&nbsp; {escape(self.message)}"

    def __repr__(self) -> str:
        return f"{'passed' if self.passed else 'not yet'}: {self.message}"
