"""Parses what a target sends, by h11. Sans-IO.

What other proxies accept and h11 does not, or not always, is repaired before h11 has it: blank lines before a header
section (RFC 9112, 2.2), a length beside a coding, which wins (6.3), chunk lines that end with LF. What cannot become a
response is rejected at once, since a client waits.
"""

import re
from typing import Final

import h11

from goreprox.http.chunks import Chunks
from goreprox.http.requests import fields_of

MAX_HEAD: Final = 64 * 1024
"""Bytes of a header section, and of the trailers of a chunked body."""
_START: Final = b"HTTP/"
_END: Final = re.compile(rb"\n\r?\n")
_BLANK: Final = re.compile(rb"(?:\r?\n)*")
_BAD_IN_REASON: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
END: Final = h11.EndOfMessage()


class Replies:
    """Parses the responses of one stream, one after the other; call `ask` before each."""

    def __init__(self) -> None:
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._raw = bytearray()
        """What has arrived, and h11 does not have yet."""
        self._scanned = 0
        self._chunks: Chunks | None = None
        """Checks the body of the present response, if it is chunked."""
        self._doubtful = False
        """Whether another parser may see the end of the response elsewhere."""

    def ask(self, stand_in: h11.Request) -> None:
        """Expect the response to a request; h11 gets the stand-in."""
        self._parser.send(stand_in)

    def asked(self) -> None:
        """Take note that the whole request has been sent."""
        self._parser.send(END)

    @property
    def idle(self) -> bool:
        """Whether no response is expected."""
        return self._parser.our_state is h11.IDLE

    @property
    def asking(self) -> bool:
        """Whether a part of the request has not been sent."""
        return self._parser.our_state is h11.SEND_BODY

    @property
    def reusable(self) -> bool:
        """Whether both messages are whole, and nothing follows, not even an end of file."""
        parser = self._parser
        over = parser.our_state is h11.DONE and parser.their_state is h11.DONE
        return over and not self._doubtful and parser.trailing_data == (b"", False)

    def start_next(self) -> None:
        """Prepare for another request."""
        assert not self._raw  # h11 has all that arrived
        self._chunks = None
        self._parser.start_next_cycle()

    @property
    def behind(self) -> bytes:
        """What arrived behind a response that switched protocols."""
        return self._parser.trailing_data[0] + bytes(self._raw)

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        if self._parser.their_state is h11.SEND_BODY and not self._raw:  # without a copy
            self._to_h11(data)
        else:
            self._raw += data

    def receive_eof(self) -> None:
        """Take note that the target has ended its side."""
        self._parser.receive_data(bytes(self._raw))
        self._raw.clear()
        self._parser.receive_data(b"")

    def next_event(self) -> h11.Event | None:
        """Return the next event, or None if there is none yet.

        Raises:
            h11.RemoteProtocolError: it is malformed.
        """
        while True:
            fed = bool(self._raw) and self._feed()
            event = self._parser.next_event()
            if isinstance(event, h11.Event):
                if isinstance(event, h11.Response | h11.InformationalResponse):
                    self._begin(event)
                return event
            if self._chunks is not None and self._chunks.malformed:
                raise h11.RemoteProtocolError("malformed chunk")
            if not fed:
                return None

    def _begin(self, head: h11.Response | h11.InformationalResponse) -> None:
        if _BAD_IN_REASON.search(head.reason):
            raise h11.RemoteProtocolError("control characters in the reason phrase")
        if isinstance(head, h11.Response) and any(name == b"transfer-encoding" for name, _ in fields_of(head)):
            if head.http_version != b"1.1":
                raise h11.RemoteProtocolError("Transfer-Encoding in HTTP/1.0")
            self._doubtful = any(name == b"content-length" for name, _ in fields_of(head))
            self._chunks = Chunks(max_trailer=MAX_HEAD, lenient=True)

    def _feed(self) -> bool:
        """Give h11 the next bytes; return whether there were any."""
        state = self._parser.their_state
        if state in (h11.IDLE, h11.SEND_RESPONSE):
            data = self._head()
        elif state is h11.SWITCHED_PROTOCOL:
            return False
        else:
            data = bytes(self._raw)
            self._raw.clear()
        if data:
            self._to_h11(data)
        return bool(data)

    def _to_h11(self, data: bytes) -> None:
        if self._chunks is not None and self._parser.their_state is h11.SEND_BODY:
            data = self._chunks.take(data)
        if data:
            self._parser.receive_data(data)

    def _head(self) -> bytes:
        """Take a whole header section, or nothing."""
        raw = self._raw
        if raw.startswith((b"\r\n", b"\n")) and (blank := _BLANK.match(raw)):
            del raw[: blank.end()]
        if not raw.startswith(_START[: len(raw)]) and raw != b"\r":
            raise h11.RemoteProtocolError("this is not HTTP")
        end = _END.search(raw, max(0, self._scanned - 2), MAX_HEAD)
        if end is None:
            if len(raw) >= MAX_HEAD:
                raise h11.RemoteProtocolError(f"a header section of more than {MAX_HEAD} bytes")
            self._scanned = len(raw)
            return b""
        self._scanned = 0
        head = bytes(raw[: end.end()])
        del raw[: end.end()]
        return head
