"""How numbers, times and digests are written on the report; anything missing is a dash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

DASH = "\u2014"
MINUS = "\u2212"


def number(value: Any) -> float | None:
    """`value` as a finite float; None for anything else (null, text, NaN, infinity, a boolean)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def percent(value: Any, digits: int = 1) -> str:
    """A share 0..1 as a percentage."""
    share = number(value)
    return DASH if share is None else f"{100 * share:.{digits}f}%".replace("-", MINUS)


def change(value: Any, base: Any, digits: int = 1) -> str:
    """The signed relative change from `base` to `value`, as a percentage."""
    new, old = number(value), number(base)
    if new is None or old is None or old == 0:
        return DASH
    return f"{100 * (new / old - 1):+.{digits}f}%".replace("-", MINUS)


def fixed(value: Any, digits: int = 2) -> str:
    """A number with a fixed number of decimals and thousands separated."""
    plain = number(value)
    return DASH if plain is None else f"{plain:,.{digits}f}".replace("-", MINUS)


def count(value: Any) -> str:
    """A whole number with thousands separated."""
    return fixed(value, 0)


def duration(value: Any) -> str:
    """Seconds, in the unit a reader would choose: 38 ms, 1.42 s, 3 min 05 s, 2 h 14 min."""
    seconds = number(value)
    if seconds is None or seconds < 0:
        return DASH
    if seconds < 0.9995:
        return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(value: Any) -> str:
    """An ISO 8601 time (or seconds since 1970) to the minute, in UTC if the zone is known; other text as it is."""
    try:
        when = (
            datetime.fromtimestamp(value, UTC)
            if isinstance(value, int | float) and not isinstance(value, bool)
            else datetime.fromisoformat(str(value))
        )
    except (ValueError, OverflowError, OSError):
        return str(value) if value else DASH
    if when.tzinfo is None:
        return when.strftime("%Y-%m-%d %H:%M")
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def short_digest(value: Any, length: int = 12) -> str:
    """The first characters of a digest, without a `sha256:` in front."""
    return str(value).rpartition(":")[2][:length] if value else DASH


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one: a section that is missing or null has no entries."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> list[Any]:
    """`value` as a list; empty for anything that is no list or tuple."""
    return list(value) if isinstance(value, list | tuple) else []
