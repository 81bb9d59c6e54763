"""What all streams and sessions of a process have come to since it started, for its status and metrics."""

import enum
from collections import Counter
from dataclasses import dataclass, field

from goreprox.protocol.fields import Fields


class EndCode(enum.Enum):
    """Why a stream has ended, for programs; `Stream.end_reason` is for people. `docs/status.md` explains each."""

    __hash__ = object.__hash__  # see `state.State`

    DONE = "done"
    CLIENT_RESET = "client_reset"
    TARGET_RESET = "target_reset"
    REFUSED = "refused"
    NO_PROVIDER = "no_provider"
    TIMEOUT = "timeout"
    INCOMPLETE = "incomplete"
    SHUTDOWN = "shutdown"
    PEER_LEFT = "peer_left"
    PEER_DIED = "peer_died"
    PEER_LOST = "peer_lost"
    REVOKED = "revoked"
    FAILED = "failed"
    ON_REQUEST = "on_request"
    ABORTED = "aborted"


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
    """Payload that was read from local sockets, each byte once; a stream that moves to another session takes its own
    along."""
    received_bytes: int = 0
    """Payload that was written to local sockets."""


@dataclass(slots=True)
class Totals:
    """Counters that only grow, and that an upgrade in place keeps.

    Those with labels are counted by the labels' owners: `ends` has one for each `EndCode`, `refused_clients` one for
    each cause (`net.access.Cause`), `dial_failures` one for each service that was ever offered.
    """

    streams: int = 0
    """Streams that have begun. Each has its number."""
    sent_bytes: int = 0
    """Payload read from local sockets, each byte once however often it was sent."""
    received_bytes: int = 0
    """Payload written to local sockets."""
    outages: int = 0
    """Established epochs that were lost."""
    replayed_bytes: int = 0
    """Payload sent again after outages."""
    resumes: int = 0
    """Outages that are over."""
    resume_s: float = 0.0
    """How long these have lasted in all, in seconds."""
    ends: Counter[str] = field(default_factory=Counter)
    refused_clients: Counter[str] = field(default_factory=Counter)
    dial_failures: Counter[str] = field(default_factory=Counter)

    def next_number(self) -> int:
        """Count a stream that begins, and return its number: the first of a process has 1."""
        self.streams += 1
        return self.streams

    def export(self) -> dict[str, object]:
        """Return all of them, for the code that takes over."""
        plain: dict[str, object] = {name: getattr(self, name) for name in (*_COUNTS, "resume_s")}
        return plain | {name: dict(getattr(self, name)) for name in _LABELLED}

    def take_over(self, fields: Fields) -> None:
        """Go on from what the process that this one has replaced has counted.

        Raises:
            ExportError: it is not what `export` returns.
        """
        for name in _COUNTS:
            setattr(self, name, fields.count(name))
        self.resume_s = fields.seconds("resume_s")
        for name in _LABELLED:
            labels = fields.fields(name)
            counter: Counter[str] = getattr(self, name)
            counter.update({label: labels.count(label) for label in labels.by_text()})


_COUNTS = ("streams", "sent_bytes", "received_bytes", "outages", "replayed_bytes", "resumes")
_LABELLED = ("ends", "refused_clients", "dial_failures")
