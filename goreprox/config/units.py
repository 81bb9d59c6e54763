"""Durations and sizes as text: `90`, `60s`, `1h30m`; `256`, `256MiB`, `1.5GiB`."""

import re
from typing import Final

_DURATION: Final = re.compile(
    r"(?=\d)" + "".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in ("d", "h", "m(?!s)", "s", "ms")), re.ASCII
)
_DURATION_UNITS_S: Final = (86_400, 3600, 60, 1, 0.001)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt])(i?b)?", re.ASCII | re.IGNORECASE)
_MIB: Final = 1 << 20


def seconds(text: str) -> float:
    """Return the seconds of `90`, `1.5`, `500ms`, `60s`, `5m`, `1h30m` or `7d`.

    Raises:
        ValueError: it is none of these.
    """
    match = _DURATION.fullmatch(text)
    if match is not None:
        parts = zip(match.groups("0"), _DURATION_UNITS_S, strict=True)
        return sum(float(count) * unit_s for count, unit_s in parts)
    return _number(text, "expected seconds, or a time like 500ms, 60s, 5m or 1h30m")


def mebibytes(text: str) -> float:
    """Return the MiB of `256`, `256MiB`, `1.5GiB`, `512M` (MiB) or `100MB` (10^8 bytes).

    Raises:
        ValueError: it is none of these.
    """
    match = _SIZE.fullmatch(text)
    if match is not None:
        decimal = (match[3] or "").lower() == "b"
        unit = float((1000 if decimal else 1024) ** (1 + "kmgt".index(match[2].lower())))
        return float(match[1]) * unit / _MIB
    return _number(text, "expected MiB, or a size like 256MiB or 1.5GiB")


def count(text: str) -> int:
    """Return a whole number.

    Raises:
        ValueError: it is none; it is not rounded.
    """
    if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
        raise ValueError("expected a whole number")
    return int(text)


def number(text: str) -> float:
    """Return a number.

    Raises:
        ValueError: it is none.
    """
    return _number(text, "expected a number")


def _number(text: str, otherwise: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(otherwise) from None
