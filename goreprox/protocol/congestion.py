"""How many bytes of an epoch may be in flight: enough to fill the path, not more than keeps its queues short.

TCP below controls congestion. This bound exists because control events, and streams with little to send, wait behind
all that is in flight. It is the lower of two:

- Twice the rate of delivery times the least round trip, as in BBR (draft-ietf-ccwg-bbr): the path is full, and its
  queue adds at most one more round trip.
- What the first link has not sent yet may take 20 ms to send. That queue is in this machine, in front of TCP, and makes
  no path faster.

The least round trip becomes wrong when the route gets longer, or others fill the same queue. Round trips are then more
than twice the least, which our own bytes alone do not cause. So the path is drained: for one round trip almost nothing
is in flight, and the round trip measured meanwhile replaces the least one, as far as TCP's own round trip on the first
link has grown. What waits in queues of ours, here or in a broker, does not count: sessions that share such a queue
would outbid each other.
"""

import enum

from goreprox.protocol.limits import (
    BATCH_SHARE,
    DRAINED_BYTES,
    IN_FLIGHT_MAX,
    IN_FLIGHT_MIN,
    MESSAGE_S,
    QUANTUM_MIN,
    REMEASURE_MAX_S,
    REMEASURE_MIN_S,
    UNSENT_S,
)

INFINITY = float("inf")
RATE_WINDOW_S = 1.0
"""The highest rate of the last one to two of these counts."""
LEAST_QUEUE_S = 0.010
"""A shorter round trip counts as this long: 20 ms of queue."""
LATE = 2.1
"""A round trip of this many times the least is not of our making, which is twice the least."""
DOUBTFUL = 1.9
"""A round trip of this many times the least may be of our making or not; if not, the bound is below what fills the
path, and follows the rate that it causes down."""
GREW = 1.25
"""A round trip that is longer by this factor is another one, not noise."""


class _Round(enum.Enum):
    """What a round trip is used for."""

    STEADY = enum.auto()
    DRAINING = enum.auto()
    """Wait until almost nothing is in flight."""
    MEASURING = enum.auto()
    """Keep it so for one round trip."""


_STEADY = _Round.STEADY


class Congestion:
    """The bound of one epoch. It follows acknowledgements and what is known of the first link."""

    __slots__ = (
        "_least_s",
        "_least_seen_s",
        "_limited",
        "_link_least_s",
        "_link_room",
        "_link_s",
        "_measured_at",
        "_pause_s",
        "_rate",
        "_rate_before",
        "_rate_from",
        "_round",
        "_round_least_s",
        "bound",
        "srtt",
    )

    def __init__(self, now: float) -> None:
        """Begin with the least bound, since nothing is known."""
        self.bound = IN_FLIGHT_MIN
        self.srtt = 0.0
        """Smoothed round trip, seconds; 0 while none was measured."""
        self._rate = self._rate_before = 0.0
        self._rate_from = now
        self._round = _Round.STEADY
        self._round_least_s = self._least_s = self._least_seen_s = INFINITY
        self._limited = False
        """Whether this round trip was one in which more bytes waited than might be in flight."""
        self._measured_at = now
        self._pause_s = REMEASURE_MIN_S
        self._link_room = IN_FLIGHT_MIN
        self._link_s = self._link_least_s = INFINITY

    def room(self, in_flight: int) -> int:
        """Return how many more bytes may be sent while `in_flight` are; less than 0 if too many are."""
        bound = self.bound if self._round is _STEADY else DRAINED_BYTES
        if in_flight <= IN_FLIGHT_MIN or self._link_s == INFINITY:
            return bound - in_flight
        return min(bound - in_flight, self._link_room)

    @property
    def _highest_rate(self) -> float:
        """Bytes/s; 0 while none was measured."""
        return max(self._rate, self._rate_before)

    @property
    def message_bytes(self) -> int:
        """How large a message may be: a quarter of the bound, and what arrives in `MESSAGE_S`; at least a quantum."""
        most = min(self.bound // BATCH_SHARE, int(self._highest_rate * MESSAGE_S))
        return most if most > QUANTUM_MIN else QUANTUM_MIN

    def sent(self, size: int) -> None:
        """Count a message that was sent."""
        self._link_room -= size

    def link(self, *, unsent_bytes: int, round_trip_s: float) -> None:
        """Take what the kernel says of the first link: bytes not sent yet, and TCP's smoothed round trip.

        To be called before messages are made with more than `IN_FLIGHT_MIN` in flight; with less, it does not count.
        """
        self._link_room = max(IN_FLIGHT_MIN, int(self._highest_rate * UNSENT_S)) - unsent_bytes
        self._link_s = round_trip_s
        self._link_least_s = min(self._link_least_s, round_trip_s)

    def acknowledged(self, rtt: float, rate: float, *, limited: bool, now: float) -> None:
        """Take a round trip (s) and the rate of delivery (bytes/s) during it; `limited`: the bound was in the way."""
        self.srtt = rtt if not self.srtt else self.srtt + (rtt - self.srtt) / 8
        if rtt < self._round_least_s:
            self._round_least_s = rtt
            if rtt < self._least_s:
                self._least_s = rtt
                self._least_seen_s = min(self._least_seen_s, rtt)
        if limited:
            self._limited = True
            if now - self._rate_from >= RATE_WINDOW_S:
                self._rate_before, self._rate, self._rate_from = self._rate, 0.0, now
        if rate > self._rate:
            self._rate = rate
        bound = 2 * self._highest_rate * max(self._least_s, LEAST_QUEUE_S)
        self.bound = min(max(int(bound), IN_FLIGHT_MIN), IN_FLIGHT_MAX)

    def round_over(self, in_flight: int, now: float) -> None:
        """Take note that what was in flight one round trip ago has arrived."""
        if self._round is _Round.DRAINING:
            if in_flight <= DRAINED_BYTES:
                self._round = _Round.MEASURING
        elif self._round is _Round.MEASURING:
            self._round = _Round.STEADY
            self._replace_least(now)
        elif self._limited and self._is_doubtful(now):
            self._round = _Round.DRAINING
        self._round_least_s = INFINITY
        self._limited = False

    def _is_doubtful(self, now: float) -> bool:
        """Whether the least round trip may be out of date."""
        if self._least_s > GREW * self._least_seen_s and now >= self._measured_at + REMEASURE_MAX_S:
            return True  # it was replaced by a longer one: perhaps others filled the queue, and no longer do
        times = self._round_least_s / max(self._least_s, LEAST_QUEUE_S)
        pause_s = self._pause_s if times > LATE else REMEASURE_MAX_S
        return times > DOUBTFUL and self._most_s > GREW * self._least_s and now >= self._measured_at + pause_s

    @property
    def _most_s(self) -> float:
        """How long the least round trip may be by what the first link says: nothing new where nothing is known."""
        if self._link_s == INFINITY:
            return self._least_seen_s
        return self._least_seen_s + self._link_s - self._link_least_s

    def _replace_least(self, now: float) -> None:
        least_s = max(min(self._round_least_s, self._most_s), self._least_seen_s)
        grew = least_s > GREW * self._least_s
        self._pause_s = REMEASURE_MIN_S if grew else min(2 * self._pause_s, REMEASURE_MAX_S)
        self._least_s = least_s
        self._measured_at = now
