"""Bodies of messages, by what their heads say of the end (RFC 9112, 6.3). Sans-IO."""

import enum
import re
from abc import ABC, abstractmethod
from typing import Final

from goreprox.http.messages import Fields, Malformed

MAX_LINE: Final = 4096
"""Bytes of a line with a chunk's size and its extensions, which are dropped."""
MAX_LENGTH: Final = (1 << 63) - 1
"""The largest Content-Length, and chunk: other parsers use signed integers of 64 bits."""
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")
_FRAMING: Final = (b"content-length", b"transfer-encoding")


class Body(ABC):
    """One body: `take` its bytes until it is `over`, which it may be from the start."""

    __slots__ = ("over", "trailers")

    def __init__(self) -> None:
        self.over = False
        self.trailers: Fields = []

    @abstractmethod
    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Decode the next bytes; return what they have of the body, and what is behind its end.

        Raises:
            Malformed: they are no part of such a body; its end cannot be found.
        """

    def take_eof(self) -> None:
        """Take note that no more will come.

        Raises:
            Malformed: the body is not over.
        """
        if not self.over:
            raise Malformed("the body is truncated")


class Sized(Body):
    """A body of known length, maybe none."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        super().__init__()
        self.left = length
        """Bytes that have not arrived."""
        self.over = not length

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Count."""
        body, behind = data[: self.left], data[self.left :]
        self.left -= len(body)
        self.over = not self.left
        return body, behind


class UntilClose(Body):
    """A body that ends with the connection."""

    __slots__ = ()

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Return all of it."""
        return data, b""

    def take_eof(self) -> None:
        """End the body."""
        self.over = True


class _Part(enum.Enum):
    SIZE = enum.auto()
    DATA = enum.auto()
    DATA_END = enum.auto()
    TRAILER = enum.auto()


_SIZE_LINE, _DATA, _DATA_END, _TRAILER = _Part
"""Looked up once: an attribute of an enum costs ten times as much as a global."""


class Chunked(Body):
    """A chunked body (RFC 9112, 7.1). Extensions are dropped, and trailers that frame are malformed."""

    __slots__ = ("_left", "_lenient", "_line", "_most", "_part")

    def __init__(self, *, max_trailer: int, lenient: bool = False) -> None:
        """Begin a body with at most `max_trailer` bytes of trailers. If `lenient`, LF alone ends a line, too."""
        super().__init__()
        self._lenient = lenient
        self._most = max_trailer
        """Bytes of trailers that may still come."""
        self._part = _SIZE_LINE
        self._line = b""
        """What has arrived of a line that has not ended."""
        self._left = 0
        """Bytes of the present chunk that have not arrived."""

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the bytes of chunks."""
        body: list[bytes] = []
        position = 0
        while position < len(data) and not self.over:
            if self._part is _DATA:
                piece = data[position : position + self._left]
                body.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._part = _DATA_END
                continue
            end = data.find(b"\n", position) + 1
            line = self._line + data[position : end or len(data)]
            position = end or len(data)
            self._line = b"" if end else line
            self._take_line(line, ended=bool(end))
        return b"".join(body), data[position:]

    def _take_line(self, line: bytes, *, ended: bool) -> None:
        """Take a line, or the beginning of one.

        Raises:
            Malformed: it is not what has to follow, or too long.
        """
        if ended and self._lenient and not line.endswith(b"\r\n"):
            line = line[:-1] + b"\r\n"
        if self._part is _DATA_END:
            if line != b"\r\n"[: len(line)]:
                raise Malformed("a chunk is longer than its size")
            if ended:
                self._part = _SIZE_LINE
        elif self._part is _TRAILER:
            if len(line) > self._most:
                raise Malformed("the trailers are too long")
            if ended:
                self._most -= len(line)
                self._take_trailer(line)
        elif len(line) > MAX_LINE:
            raise Malformed("the line of a chunk's size is too long")
        elif ended:
            self._take_size(line)

    def _take_size(self, line: bytes) -> None:
        size = _SIZE.fullmatch(line)
        self._left = MAX_LENGTH + 1 if size is None else int(size[1], 16)
        if self._left > MAX_LENGTH:
            raise Malformed("the size of a chunk is malformed")
        self._part = _DATA if self._left else _TRAILER

    def _take_trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self.over = True
            return
        trailer = _FIELD.fullmatch(line)
        if trailer is None or trailer[1].lower() in _FRAMING:
            raise Malformed("a trailer is malformed")
        self.trailers.append((trailer[1], trailer[2].rstrip(b" \t")))
