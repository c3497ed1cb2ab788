"""What a prediction is set beside: the sentence, and the picture of both on one line. Pure text, no widgets."""

import math
from dataclasses import dataclass
from html import escape
from numbers import Integral
from typing import Any, Final, Literal

from tplab.checks import ArgumentError, check_one_of, check_text
from tplab.lab import style
from tplab.shown import amount

Source = Literal["model", "counted", "measured"]

_WORDS: Final[dict[Source, str]] = {"model": "Computed", "counted": "Counted", "measured": "Measured"}
_SOURCES: Final[dict[str, Source]] = {"count": "counted", **{source: source for source in _WORDS}}
_BADGES: Final[dict[Source, str]] = {"model": "MODEL", "counted": "COUNTED", "measured": ""}
_FAR_APART: Final = 10.0  # from this ratio on, both stand on a logarithmic line
_WIDTH, _MARGIN = 560, 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A number that a prediction is compared with, and where it comes from."""

    value: float
    """The number, in the prediction's unit; NaN where a measurement gave none."""
    unit: str
    """The prediction's unit."""
    source: Source
    """Computed by a model, counted in a run, or measured."""
    badge: str
    """Where the number comes from, as on figures."""
    whole: bool
    """It came as a whole number: a count, of which a prediction is off by so many."""

    @classmethod
    def of(cls, value: Any, *, unit: str, source: str, badge: str = "") -> "Answer":
        """An answer from any number (Python's, numpy's, a tensor of one element).

        Raises ``ArgumentError`` for what is no number, for an unknown ``source``, and for a ``badge`` that contradicts
        it: what was measured needs one that begins with LIVE or RECORDED, and what a model computed must not have it.
        """
        if source not in _SOURCES:
            check_one_of("source", source, list(_WORDS))
        source = _SOURCES[source]
        check_text("badge", badge)
        measured = badge.startswith(("LIVE", "RECORDED"))
        if source == "measured" and not measured:
            rule = "must say where a measurement comes from: badge=pool.badge, or the badge of a recorded frame"
            raise ArgumentError("badge", badge, f'{rule} (or source="model", source="counted")')
        if source == "model" and measured:
            raise ArgumentError("badge", badge, 'must not claim a measurement of what source="model" computed')
        try:
            if isinstance(value, bool | str | bytes):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # torch: more than one element
            raise ArgumentError("value", value, "must be one number, in the prediction's unit") from None
        return cls(
            value=number,
            unit=unit,
            source=source,
            badge=badge or _BADGES[source],
            whole=isinstance(value, Integral),
        )

    def said(self) -> str:
        """``Measured: 4.03 ms``, ``Computed: 141 GB``."""
        found = quantity(self.value, self.unit) if math.isfinite(self.value) else f"no number ({self.value})"
        return f"{_WORDS[self.source]}: {found}"

    def beside(self, prediction: float | None) -> str:
        """The whole sentence for a prediction, or for none."""
        if prediction is None:
            return f"{self.said()}. It was shown without a prediction."
        return f"You predicted {quantity(prediction, self.unit)}. {self.said()}. {self._verdict(prediction)}"

    def _verdict(self, prediction: float) -> str:
        value, off = self.value, prediction - self.value
        if not math.isfinite(value):
            return "Nothing to hold a prediction against: run the cells above again."
        if off == 0:
            return "Exactly right."
        way = "high" if off > 0 else "low"
        by = quantity(abs(off), "percentage points" if self.unit == "%" else "" if self.whole else self.unit)
        if prediction * value < 0:
            return f"Off by {by}, and on the other side of zero."
        if prediction == 0 or value == 0:
            return f"Too {way} by {by}."
        ratio = max(prediction / value, value / prediction)
        if value < 0:
            return f"Too {way} by {by}."
        if self.whole or self.unit == "%":
            times = f", {_times(ratio)}" if ratio >= 2 else ""
            return f"Too {way} by {by}{times}."
        if ratio >= 2:
            return f"That is {_times(ratio)} too {way}."
        share = 100 * abs(off) / value
        return f"That is {share:.0f} % too {way}." if share >= 1 else "Right to within 1 %."

    def line(self, prediction: float | None) -> str:
        """Both numbers on one line as SVG, logarithmic where they are far apart; nothing without a prediction."""
        if prediction is None or not math.isfinite(self.value):
            return ""
        value = self.value
        low, high, first, last = 0, 1, 0.0, 1.0
        far = prediction > 0 < value and max(prediction / value, value / prediction) >= _FAR_APART
        if far:
            low = math.floor(math.log10(min(prediction, value)))
            high = max(low + 1, math.ceil(math.log10(max(prediction, value))))
            every = math.ceil((high - low) / 6)
            ticks = [10.0**power for power in range(low, high + 1, every)]
        else:
            first, last = min(0.0, prediction, value), max(0.0, prediction, value)
            if first == last:
                last = first + 1.0
            ticks = _round_ticks(first, last)
            first, last = min(first, ticks[0]), max(last, ticks[-1])

        def x(number: float) -> float:
            share = (math.log10(number) - low) / (high - low) if far else (number - first) / (last - first)
            return _MARGIN + share * (_WIDTH - 2 * _MARGIN)

        ink = "var(--jp-ui-font-color1,#1F2430)"
        muted = "var(--jp-ui-font-color2,#5B6472)"
        parts = [f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="40" y2="40" stroke="{muted}"/>']
        for tick in ticks:
            parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="40" y2="45" stroke="{muted}"/>')
            parts.append(_label(x(tick), 58, quantity(tick, ""), muted, 11))
        colour = style.badge_colour(self.badge)
        mark = x(prediction)
        parts.append(f'<path d="M{mark:.1f} 38l-6 -11h12z" fill="{style.BACKWARD}" stroke="{ink}"/>')
        parts.append(_label(mark, 20, f"you: {quantity(prediction, self.unit)}", ink, 12))
        parts.append(f'<circle cx="{x(value):.1f}" cy="40" r="6" fill="{colour}" stroke="white" stroke-width="1.5"/>')
        parts.append(_label(x(value), 76, f"{_WORDS[self.source].lower()}: {quantity(value, self.unit)}", ink, 12))
        scale = " (logarithmic)" if far else ""
        parts.append(_label(_WIDTH - _MARGIN, 92, f"{self.unit}{scale}".strip(), muted, 11))
        return (
            f'<svg role="img" aria-label="{escape(self.beside(prediction))}" viewBox="0 0 {_WIDTH} 98" '
            f'style="display:block;width:100%;max-width:{_WIDTH}px;height:auto">{"".join(parts)}</svg>'
        )


def quantity(number: float, unit: str) -> str:
    """``4.03 ms``, ``55 requests``, ``1.2e+20 ms``: three digits, or all of a whole number."""
    if not math.isfinite(number) or (number != 0 and not 1e-6 <= abs(number) < 1e15):
        text = f"{number:.3g}"
    else:
        text = amount(number)
    return f"{text} {unit}".rstrip()


def _times(ratio: float) -> str:
    """``2.5 times``, ``30 times``: two digits."""
    if math.isinf(ratio):
        return "more than 1e+308 times"
    ratio = float(f"{ratio:.2g}")
    return f"{f'{ratio:g}' if ratio < 10 else quantity(ratio, '')} times"


def _round_ticks(first: float, last: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose both ends, six at most or so."""
    power = 10.0 ** math.floor(math.log10((last - first) / 4))
    step = next(power * each for each in (1, 2, 5, 10) if power * each * 5 >= last - first)
    return [number * step for number in range(math.floor(first / step), math.ceil(last / step) + 1)]


def _label(x: float, y: int, text: str, colour: str, size: int) -> str:
    """Text around ``x`` that stays inside the picture: near an end it ends, or begins, there."""
    half = 3.1 * len(text) * size / 11
    anchor = "start" if x - half < 0 else "end" if x + half > _WIDTH else "middle"
    x = {"start": max(2.0, min(x - 8, x)), "end": min(_WIDTH - 2.0, x + 8), "middle": x}[anchor]
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="{colour}" '
        f'style="font:{size}px system-ui,sans-serif">{escape(text)}</text>'
    )
