"""Ids of what is numbered in a process: its streams and events, whose ids an upgrade in place keeps, and requests."""

import re
from typing import Final

MARK_DIGITS: Final = 6
"""Of what tells processes apart: two of a hundred processes of a machine share them once in 3,000 machines."""
_ID: Final = re.compile(r"([0-9a-f]{6})-([0-9]{1,19})")


class Ids:
    """Those of one process."""

    def __init__(self, mark: bytes) -> None:
        """Tell them from those of others by the beginning of `mark`, like an incarnation."""
        self._mark = mark.hex()[:MARK_DIGITS]

    def id_of(self, number: int) -> str:
        """Return the id of a number."""
        return f"{self._mark}-{number}"

    def number_of(self, text: object) -> int | None:
        """Return the number with this id; None if it is another process's, or no id."""
        found = _ID.fullmatch(text) if isinstance(text, str) else None
        return int(found[2]) if found is not None and found[1] == self._mark else None
