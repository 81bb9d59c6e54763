"""What a session reports to its driver, which acts on it."""

import enum
from dataclasses import dataclass

from goreprox.protocol.events import Code, Served
from goreprox.protocol.stream import Stream


class Kind(enum.Enum):
    """What happened."""

    OPENED = enum.auto()
    """The peer wants a stream: dial the target."""
    ACCEPTED = enum.auto()
    REFUSED = enum.auto()
    UNSENT = enum.auto()
    """The path was lost before the stream's Open was sent: another session may carry it."""
    READABLE = enum.auto()
    """Bytes or an end of file wait for the socket."""
    WRITABLE = enum.auto()
    """The socket may be read again."""
    RESET = enum.auto()
    """Reset the socket after the bytes that wait for it."""
    ABORTED = enum.auto()
    """Reset the socket now."""
    CLOSED = enum.auto()
    """The stream has ended, and nothing of it was lost."""
    ESTABLISHED = enum.auto()
    """The peer has resumed: streams flow."""
    DRAINING = enum.auto()
    """The peer wants no new streams."""
    SERVED = enum.auto()
    """The peer says where its clients find a published name."""
    GOODBYE = enum.auto()
    """The peer's session has ended, and with it its streams."""
    FAILED = enum.auto()
    """The peer broke the protocol, or this process has a bug; the session has ended, and with it its streams."""


READABLE = Kind.READABLE
"""See `state.OPEN`."""


@dataclass(slots=True)
class Notice:
    """One thing for the driver to act on. Never changed; not frozen, because that takes three times as long to make."""

    kind: Kind
    stream: Stream | None = None
    reason: str = ""
    code: Code = Code.OTHER
    """Of a refusal."""
    served: Served | None = None
