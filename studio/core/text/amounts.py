"""Amounts as a person of the language in use writes them: shares, sizes, times, counts. `number` itself is in the package."""

from __future__ import annotations

import math

from studio.core.text import Counted, Phrase, number

SECONDS = Counted("{n} second", "{n} seconds")
MINUTES = Phrase("{n} min")
HOURS = Phrase("{h} h {m} min")
WHOLE_HOURS = Phrase("{h} h")
DAYS = Counted("{n} day", "{n} days")
UNDER_A_SECOND = Phrase("under a second")
EXACT_SECONDS = Phrase("{n} s")
ABOUT = Phrase("about {amount}")
LEFT = Phrase("{amount} left")
PERCENT = Phrase("{n} %")
KILOBYTES, MEGABYTES, GIGABYTES, TERABYTES = Phrase("{n} kB"), Phrase("{n} MB"), Phrase("{n} GB"), Phrase("{n} TB")
THOUSANDS, MILLIONS, BILLIONS = Phrase("{n} k"), Phrase("{n} M"), Phrase("{n} B")


def percent(share: float, digits: int = 0) -> str:
    """0.123 → "12 %"."""
    return PERCENT(n=number(100 * share, digits))


def duration(seconds: float) -> str:
    """As a person would say it: "40 seconds", "14 min", "2 h 5 min"."""
    if seconds < 1:
        return UNDER_A_SECOND()
    if seconds < 90:
        return SECONDS(max(1, round(seconds) if seconds < 10 else 5 * round(seconds / 5)))
    if seconds < 3600:
        return MINUTES(n=round(seconds / 60))
    if seconds < 48 * 3600:
        hours, rest = divmod(round(seconds / 60), 60)
        return HOURS(h=hours, m=rest) if rest else WHOLE_HOURS(h=hours)
    return DAYS(round(seconds / 86400))


def seconds(amount: float) -> str:
    """Measured, to a tenth: "0.8 s"."""
    return EXACT_SECONDS(n=number(amount, 1))


def left(seconds: float | None) -> str:
    """ "about 4 min left", or nothing while it is not known."""
    return "" if seconds is None or not math.isfinite(seconds) else LEFT(amount=ABOUT(amount=duration(seconds)))


def size(bytes: float) -> str:
    """Decimal units, as file managers and downloads count, three figures at most: "268 MB", "1.9 GB"."""
    if bytes < 999.5e3:
        return KILOBYTES(n=max(1, math.ceil(bytes / 1e3)) if bytes else 0)
    scale, unit = next((scale, unit) for scale, unit in ((1e6, MEGABYTES), (1e9, GIGABYTES), (1e12, TERABYTES))
                       if bytes < 999.5 * scale or unit is TERABYTES)
    return unit(n=_three_figures(bytes / scale))


def count(things: float) -> str:
    """134_500_000 → "135 M"."""
    if things < 999.5:
        return number(things, 0)
    scale, word = next((scale, word) for scale, word in ((1e3, THOUSANDS), (1e6, MILLIONS), (1e9, BILLIONS))
                       if things < 999.5 * scale or word is BILLIONS)
    return word(n=_three_figures(things / scale))


def _three_figures(value: float) -> str:
    return number(value, 1 if value < 99.5 else 0)
