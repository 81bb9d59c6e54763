"""Chunked bodies (RFC 9112, 7.1), checked as they arrive, before h11 has them. Sans-IO.

h11 decodes them, and is lenient about what others read differently: sizes of 20 digits, trailers that end with LF. It
also waits without end for the CR LF of a line that ended with LF.
"""

import enum
import itertools
import re
from typing import Final

MAX_LINE: Final = 4096
"""Bytes of a line with a chunk's size and its extensions, which are dropped."""
MAX_SIZE: Final = (1 << 63) - 1
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_FIELD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n")


class _Part(enum.Enum):
    SIZE = enum.auto()
    DATA = enum.auto()
    DATA_END = enum.auto()
    TRAILER = enum.auto()
    OVER = enum.auto()


class Chunks:
    """Checks one body; `malformed` once something in it was."""

    __slots__ = ("_left", "_lenient", "_line", "_most", "_part", "_trailer", "malformed")

    def __init__(self, *, max_trailer: int, lenient: bool = False) -> None:
        """Begin a body with at most `max_trailer` bytes of trailers. If `lenient`, LF alone ends a line, too."""
        self._lenient = lenient
        self._most = max_trailer
        self._part = _Part.SIZE
        self._line = bytearray()
        """What has arrived of a line that has not ended."""
        self._left = 0
        """Bytes of the present chunk that have not arrived."""
        self._trailer = 0
        self.malformed = False

    def take(self, data: bytes) -> bytes:
        """Return the well-formed part of the next bytes, with CR LF after each line, and all that is behind the end."""
        position = 0
        fixes: list[int] = []
        """The places where a CR is missing."""
        while position < len(data) and self._part is not _Part.OVER:
            if self._part is _Part.DATA:
                count = min(self._left, len(data) - position)
                position += count
                self._left -= count
                if self._left:
                    break
                self._part = _Part.DATA_END
                if data.startswith(b"\r\n", position):  # nearly always
                    position += 2
                    self._part = _Part.SIZE
                continue
            if self._part is _Part.SIZE and not self._line:  # nearly always, too
                size = _SIZE.match(data, position, position + MAX_LINE)
                if size is not None and self._begin(size):
                    position = size.end()
                    continue
            end = data.find(b"\n", position) + 1
            self._line += data[position : end or len(data)]
            if end and self._lenient and not self._line.endswith(b"\r\n"):
                self._line[-1:] = b"\r\n"
                fixes.append(end - 1)
            if not self._possible() or (end and not self._end_line()):
                self.malformed = True
                data = data[:position]
                break
            position = end or len(data)
        if fixes := [place for place in fixes if place < len(data)]:
            data = b"\r".join(data[start:end] for start, end in itertools.pairwise([0, *fixes, len(data)]))
        return data

    def _possible(self) -> bool:
        """Whether the line is, or may become, what has to follow."""
        line = self._line
        if self._part is _Part.DATA_END:
            return b"\r\n".startswith(line)
        if self._part is _Part.TRAILER:
            return self._trailer + len(line) <= self._most
        return len(line) <= MAX_LINE

    def _end_line(self) -> bool:
        """End a line; return whether it is well-formed."""
        line, self._line = self._line, bytearray()
        if self._part is _Part.DATA_END:
            self._part = _Part.SIZE
            return True
        if self._part is _Part.TRAILER:
            self._trailer += len(line)
            if line == b"\r\n":
                self._part = _Part.OVER
                return True
            return _FIELD.fullmatch(line) is not None
        size = _SIZE.fullmatch(line)
        return size is not None and self._begin(size)

    def _begin(self, size: re.Match[bytes]) -> bool:
        """Begin a chunk; return whether its size is allowed."""
        length = int(size[1], 16)
        if length > MAX_SIZE:
            return False
        self._left = length
        self._part = _Part.DATA if length else _Part.TRAILER
        return True
