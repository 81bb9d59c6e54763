"""What HTTP messages consist of, once they are parsed: heads, and the ends of bodies.

A head is the first line of a message with the header section behind it.
"""

from dataclasses import dataclass, field

Fields = list[tuple[bytes, bytes]]


class Malformed(Exception):
    """These bytes are no HTTP message, or may be read in several ways; nothing behind them can be read."""


class Message:
    """A head. Fields are in the order and with the names in which they came, values without the space around them."""

    def __init__(self, version: bytes, fields: Fields) -> None:
        self.version = version
        """Of HTTP: `1.0` or `1.1`."""
        self.fields = fields
        self.values: dict[bytes, list[bytes]] = {}
        """The values of each field, by its name in lower case."""
        for name, value in fields:
            lowered = name.lower()
            if lowered in self.values:
                self.values[lowered].append(value)
            else:
                self.values[lowered] = [value]
        named = self.values.get(b"connection", ())
        self.connection_options = frozenset(option.strip().lower() for value in named for option in value.split(b","))
        """What `Connection` names, in lower case."""

    def first(self, name: bytes) -> bytes | None:
        """Return the value of the first field of this name, given in lower case."""
        values = self.values.get(name)
        return None if values is None else values[0]

    @property
    def chunked(self) -> bool:
        """Whether the body is chunked: no other coding gets past `heads`."""
        return b"transfer-encoding" in self.values

    @property
    def length(self) -> int | None:
        """The Content-Length, of at most 63 bits: the parser knows one number only, if the field is there."""
        value = self.first(b"content-length")
        return None if value is None else int(value)

    @property
    def keeps_alive(self) -> bool:
        """Whether another message may follow (RFC 9112, 9.3); never with HTTP/1.0."""
        return self.version == b"1.1" and b"close" not in self.connection_options


class Request(Message):
    """The head of a request."""

    def __init__(self, method: bytes, target: bytes, version: bytes, fields: Fields) -> None:
        super().__init__(version, fields)
        self.method = method
        self.target = target
        self.raw = b""
        """As it came; empty if it was changed since."""


class Response(Message):
    """The head of a response, a final or an interim one."""

    def __init__(self, status: int, reason: bytes, version: bytes, fields: Fields) -> None:
        super().__init__(version, fields)
        self.status = status
        """100 to 999."""
        self.reason = reason

    @property
    def switches(self) -> bool:
        """Whether what follows is no HTTP."""
        return self.status == 101

    @property
    def interim(self) -> bool:
        """Whether a final response is still to follow, unless it `switches`."""
        return self.status < 200


@dataclass(frozen=True, slots=True)
class EndOfMessage:
    """A message is whole."""

    trailers: Fields = field(default_factory=list)
