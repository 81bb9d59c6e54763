"""The states of the socket of an HTTP client, as long as `client` owns it.

SERVING --the last response--> FINISHING --all is written--> LINGERING --the client's end of file--> CLOSED
--TLS has no room for close_notify--> CLOSING --room--> LINGERING
--protocols switched--> SWITCHING --all is written--> CLOSED, joined with its stream
any     --reset by either side--> CLOSED
"""

import enum
from typing import Final

from goreprox.net.poller import READ, WRITE


class Phase(enum.Enum):
    """The state of a client's connection."""

    SERVING = enum.auto()
    """Requests are read, and responses written."""
    FINISHING = enum.auto()
    """The last response is being written."""
    SWITCHING = enum.auto()
    """It has left HTTP; what was written before goes out."""
    CLOSING = enum.auto()
    """Shutting down waits for room in the socket, as TLS has something to say then."""
    LINGERING = enum.auto()
    """It was shut down; the client's end of file is awaited, and what comes before it is ignored."""
    CLOSED = enum.auto()
    """The socket is no longer ours."""


EVENTS: Final = {
    Phase.SERVING: READ | WRITE,
    Phase.FINISHING: WRITE,
    Phase.SWITCHING: WRITE,
    Phase.CLOSING: WRITE,
    Phase.LINGERING: READ,
    Phase.CLOSED: 0,
}
"""What a socket is polled for: of SERVING READ only while there is room for what would be read. WRITE only while bytes
are waiting, but in CLOSING."""

SERVING, CLOSING, LINGERING, CLOSED = Phase.SERVING, Phase.CLOSING, Phase.LINGERING, Phase.CLOSED
"""Looked up once: an attribute of an enum costs ten times as much as a global."""
