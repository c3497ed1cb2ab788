"""Numbers as people read them."""

import math


def fixed(value: float) -> str:
    """Three digits, all of those before the point, and no exponent: ``9.53``, ``73.1``, ``402,700``."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{decimals}f}"


def count(number: float) -> str:
    """Format a request count: integer if whole, else three significant digits."""
    return f"{number:,.0f}" if number == round(number) else fixed(number)


def duration(ms: float) -> str:
    """Format a time given in milliseconds: in milliseconds below a second, else in seconds."""
    return f"{fixed(ms)} ms" if ms < 1000 else f"{fixed(ms / 1e3)} s"
