"""What a session reports to its driver: notices to act on, counters to show."""

import enum
from dataclasses import dataclass
from typing import NamedTuple

from goreprox.protocol.events import Code
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


@dataclass(slots=True)
class Counters:
    """Totals of a session since it began."""

    outages: int = 0
    """Established epochs that were lost."""
    replayed_bytes: int = 0
    """Payload sent again after outages."""
    opened: int = 0
    """Streams, refused ones included."""
    sent_bytes: int = 0
    """Payload of ended streams that was read from local sockets."""
    received_bytes: int = 0
    """Payload of ended streams that was written to local sockets."""


class Figures(NamedTuple):
    """How a session stands."""

    scheduled_streams: int
    """Streams with something to send that wait for their turn."""
    control_events: int
    """Events without payload that wait to be sent."""
    sent_bytes: int
    """Payload read from local sockets, each byte once however often it was sent."""
    received_bytes: int
    """Payload written to local sockets."""
