"""One epoch on one path: numbers and acknowledgements of messages, bytes in flight, round-trip time, loss.

A path detects that messages were lost (a gap, or silence), and never repairs it: the session begins a new epoch and
resumes from offsets. `now` is an argument, in seconds.
"""

from collections import deque
from dataclasses import dataclass

from goreprox.protocol.congestion import Congestion
from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.limits import (
    IN_FLIGHT_MESSAGES,
    LOSS_TIMEOUT_S,
    PATH_ACK_BYTES,
    PATH_ACK_DELAY_S,
    PROBE_MIN_S,
    STALL_PROBES,
)

INFINITY = float("inf")


@dataclass(slots=True)
class _Sent:
    size: int
    at: float
    acked_bytes: int
    """Bytes acknowledged by then, and `acked_at` when: the rate is measured between two acknowledgements."""
    acked_at: float
    limited: bool


class Path:
    """One epoch on one path."""

    __slots__ = (
        "_ack_due",
        "_acked_at",
        "_acked_bytes",
        "_next_probe",
        "_probe_s",
        "_probes",
        "_progress_at",
        "_round_end",
        "_sent",
        "_unacked_bytes",
        "congestion",
        "epoch",
        "in_flight",
        "path_id",
        "peer_acked",
        "received",
        "seq",
    )

    def __init__(self, path_id: object, epoch: int, *, now: float) -> None:
        """Begin `epoch` on the carrier that the driver calls `path_id`."""
        self.path_id = path_id
        self.epoch = epoch
        self.seq = 0
        self.received = 0
        self.peer_acked = 0
        self.in_flight = 0
        self.congestion = Congestion(now)
        self._sent: deque[_Sent] = deque()
        self._acked_bytes = 0
        self._acked_at = now
        self._progress_at = now
        self._probe_s = PROBE_MIN_S
        self._probes = 0
        """Sent since the last progress."""
        self._next_probe = now + PROBE_MIN_S
        self._round_end = 0
        """When the peer has acknowledged more messages, all that was in flight one round trip ago has arrived."""
        self._unacked_bytes = 0
        self._ack_due: float | None = None

    @property
    def room(self) -> int:
        """Bytes that may still be sent before others are acknowledged."""
        if self.seq - self.peer_acked >= IN_FLIGHT_MESSAGES:
            return 0
        return self.congestion.room(self.in_flight)

    @property
    def srtt(self) -> float:
        """Smoothed round trip, seconds; 0 while none was measured."""
        return self.congestion.srtt

    @property
    def deadline(self) -> float | None:
        """When `ack_due`, `probe_due` or `lost` may next become true."""
        due = self._ack_due
        if self._sent:
            due = min(due or INFINITY, self._next_probe, self._progress_at + LOSS_TIMEOUT_S)
        return due

    def send(self, size: int, now: float) -> None:
        """Count the next message, of `size` bytes, as sent; it carries our acknowledgement."""
        if not self._sent:
            self._progress_at = now
            self._next_probe = now + self._probe_s
        limited = self.in_flight + size >= self.congestion.bound // 2
        self._sent.append(_Sent(size, now, self._acked_bytes, self._acked_at if self.in_flight else now, limited))
        self.in_flight += size
        self.congestion.sent(size)
        self.seq += 1
        self.acknowledged()

    def acknowledged(self) -> None:
        """Note that the peer was sent `received`."""
        self._ack_due = None
        self._unacked_bytes = 0

    def receive(self, seq: int, size: int, now: float) -> bool:
        """Count message `seq` of `size` bytes; return whether it is new. One without events (size 0) is not counted.

        Raises:
            LookupError: messages between were lost.
        """
        if seq > self.received:
            raise LookupError(f"message {seq}, expected {self.received}")
        if seq < self.received or not size:
            return False
        self.received += 1
        self._unacked_bytes += size
        due = now if self._unacked_bytes >= PATH_ACK_BYTES else now + PATH_ACK_DELAY_S
        self._ack_due = due if self._ack_due is None else min(due, self._ack_due)
        return True

    def acknowledge_now(self, now: float) -> None:
        """Let the next flush acknowledge what was received: the peer waits for it."""
        self._ack_due = now

    def ack_due(self, now: float) -> bool:
        """Whether an acknowledgement is to be sent, alone if need be."""
        return self._ack_due is not None and self._ack_due <= now

    def ack(self, count: int, now: float) -> None:
        """Take the peer's acknowledgement of our first `count` messages.

        Raises:
            RemoteProtocolError: more than were sent.
        """
        if count > self.seq:
            raise RemoteProtocolError(f"ack of {count} messages, expected at most {self.seq}")
        if count <= self.peer_acked:
            return
        newest = None
        for _ in range(count - self.peer_acked):
            newest = self._sent.popleft()
            self.in_flight -= newest.size
            self._acked_bytes += newest.size
        self.peer_acked = count
        self._acked_at = self._progress_at = now
        assert newest is not None
        self._measure(newest, now)
        self._probe_s = max(PROBE_MIN_S, 4 * self.congestion.srtt)
        self._next_probe = now + self._probe_s
        self._probes = 0

    def _measure(self, newest: _Sent, now: float) -> None:
        """Estimate rate and round trip as BBR does, from what was acknowledged between two acknowledgements."""
        rtt = max(now - newest.at, 1e-6)
        rate = (self._acked_bytes - newest.acked_bytes) / max(now - newest.acked_at, rtt)
        self.congestion.acknowledged(rtt, rate, limited=newest.limited, now=now)
        if self.peer_acked > self._round_end:
            self._round_end = self.seq
            self.congestion.round_over(self.in_flight, now)

    def probe_due(self, now: float) -> bool:
        """Whether acknowledgements are late enough for a Probe; each time the next one waits twice as long."""
        if not self._sent or now < self._next_probe:
            return False
        self._probe_s *= 2
        self._probes += 1
        self._next_probe = now + self._probe_s
        return True

    @property
    def probed(self) -> bool:
        """Whether a Probe is unanswered."""
        return self._probes > 0

    @property
    def stalled(self) -> bool:
        """Whether so many Probes are unanswered that another path, if there is one, is the better bet."""
        return self._probes > STALL_PROBES

    def lost(self, now: float) -> bool:
        """Whether the peer has been silent for too long."""
        return bool(self._sent) and now >= self._progress_at + LOSS_TIMEOUT_S
