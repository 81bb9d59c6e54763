"""The events of a session, as values; `wire` encodes them.

Offsets are absolute, in bytes from the start of their direction, below 2**63. Events are never changed; they are not
frozen, because a frozen one takes three times as long to make.
"""

import enum
from dataclasses import dataclass

Buffer = bytes | memoryview


class Code(enum.IntEnum):
    """What a Refuse or an Abort means to programs; the reason beside it is for people."""

    OTHER = 0
    """Nothing in particular; also stands for codes of later versions."""
    TARGET = 1
    """Refuse: the target could not be reached."""
    FULL = 2
    """Refuse: the acceptor has as many streams as it may have, which says nothing of its target."""
    DRAINING = 3
    """Refuse: the acceptor is about to end, and may be replaced."""
    SERVICE = 4
    """Refuse: the acceptor does not offer this service."""
    GONE = 5
    """Abort: the sender no longer knows this stream."""


@dataclass(slots=True)
class Open:
    """The opener asks for a new stream; it may send up to the acceptor's `Resume.window` before the response."""

    stream: int
    service: str
    client: str
    """The client's address, for logs and for targets that want it."""
    destination: str
    """The address that the client came to, for targets that want it; empty: not known."""
    limit: int
    """How far the acceptor may send."""


@dataclass(slots=True)
class Accept:
    """The target has accepted: the stream is open."""

    stream: int
    limit: int
    """How far the opener may send."""


@dataclass(slots=True)
class Refuse:
    """The stream is not served here, and not one byte of it was delivered: another provider may take it."""

    stream: int
    code: Code
    reason: str


@dataclass(slots=True)
class Data:
    """Bytes of a stream. The payload is immutable, and may be shared with the replay buffer."""

    stream: int
    offset: int
    payload: Buffer


@dataclass(slots=True)
class Eof:
    """The socket of the sender was half-closed after `final` bytes."""

    stream: int
    final: int


@dataclass(slots=True)
class Reset:
    """The socket of the sender was reset after `final` bytes, which are delivered before the reset."""

    stream: int
    final: int
    reason: str


@dataclass(slots=True)
class Abort:
    """The stream ends at once, bytes in flight included: no socket caused this, one end gave up."""

    stream: int
    code: Code
    reason: str


@dataclass(slots=True)
class Ack:
    """The local socket took all bytes below `delivered`; the peer may send those below `limit`.

    An end of file counts as one, as a FIN does in TCP (RFC 9293, 3.4): `delivered` is `final + 1` once the
    socket was half-closed too.
    """

    stream: int
    delivered: int
    limit: int


@dataclass(slots=True)
class Live:
    """What an end has received of one live stream; part of `Resume`."""

    stream: int
    accepted: bool
    received: int
    """Bytes that need not be sent again."""
    delivered: int
    limit: int
    eof: bool
    """Whether the end of file was received: `received` is then the final offset."""


@dataclass(slots=True)
class Resume:
    """A page of what one end knows; every epoch begins with such pages from both ends."""

    grace_s: float
    """How long this end keeps streams without a path; both use the smaller."""
    window: int
    """The reservation of a stream: what may be sent before the Accept."""
    next_id: int
    """The least stream id that this end has never seen."""
    last: bool
    streams: tuple[Live, ...]


@dataclass(slots=True)
class Drain:
    """The sender wants no new streams."""


@dataclass(slots=True)
class Goodbye:
    """The sender ends, and with it the streams that are left."""

    reason: str


@dataclass(slots=True)
class Probe:
    """Asks for an acknowledgement at once."""


@dataclass(slots=True)
class Served:
    """The opener says where its clients find a published name, one of the acceptor's services; or why they do not."""

    service: str
    at: str
    """A URL, or host and port; empty: nowhere."""
    reason: str
    """For people: what is wrong, if anything is."""


Control = Open | Accept | Refuse | Eof | Reset | Abort | Ack | Resume | Drain | Goodbye | Probe | Served
"""Events without payload."""
Event = Data | Control


@dataclass(slots=True)
class Batch:
    """One message of a path: numbered within its epoch, acknowledging the other direction."""

    epoch: int
    seq: int
    """Number of this message; one without events is not counted, and carries the number of the next."""
    ack: int
    """Messages of this epoch received so far."""
    events: tuple[Event, ...]
