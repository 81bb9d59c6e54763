"""One memory budget for all streams of a process.

A stream has two directions in each process, what it sends and what it receives; each buffers on its own. Half of the
memory is reserved: every direction may always hold `reserved_bytes`. The other half is a shared pool. No direction may
use more of it than a fifth of what is free to it, so some is always free for latecomers (dynamic thresholds, Choudhury
and Hahne, IEEE/ACM ToN 6(2), 1998).
"""

from goreprox.protocol.limits import MIB, WINDOW_INITIAL, WINDOW_MAX
from goreprox.protocol.totals import Totals

DIRECTIONS = 2
"""Of a stream."""
POOL_SHARE = 5
"""A direction may use this part of the free pool: with alpha = 1/4, alpha / (1 + alpha) = 1/5."""
TIERS = (MIB, 16 * MIB, 256 * MIB)
"""Half of the pool is closed to directions that have moved less than the first of these, a quarter to those below the
second, an eighth to those below the third: what a stopped reader holds cannot be called back, so some is left for
streams that keep moving."""
RESERVED_MIN = 2048
RESERVED_MAX = WINDOW_INITIAL


class Budget:
    """Bytes that streams may buffer.

    Reservations: `max_streams * 2 directions * reserved_bytes <= total / 2`. Shared pool: `total / 2`. So all buffers
    together stay within `total_bytes`.
    """

    __slots__ = ("max_streams", "pool_bytes", "pool_used_bytes", "reserved_bytes", "told_bytes", "totals")

    def __init__(self, *, total_bytes: int, max_streams: int) -> None:
        """Divide `total_bytes` among at most `max_streams`.

        Raises:
            ValueError: less than 2 KiB for each direction of each stream.
        """
        self.totals = Totals()
        """What these streams, and their sessions, have come to."""
        self.pool_used_bytes = 0
        self.max_streams = self.told_bytes = 0
        self.resize(total_bytes=total_bytes, max_streams=max_streams)

    def resize(self, *, total_bytes: int, max_streams: int) -> None:
        """Divide `total_bytes` anew, among at most `max_streams`; what is held or granted stays.

        A direction uses another part of the pool once it is accounted for next.

        Raises:
            ValueError: less than 2 KiB for each direction of each stream.
        """
        reserved = total_bytes // 2 // DIRECTIONS // max_streams
        if reserved < RESERVED_MIN:
            least = RESERVED_MIN * 2 * DIRECTIONS * max_streams
            raise ValueError(f"{total_bytes} bytes for {max_streams} streams, expected at least {least}")
        self.reserved_bytes = min(reserved, RESERVED_MAX)
        self.pool_bytes = total_bytes // 2
        # Peers may have been told the larger reservation, and may have ended as many streams as there could be.
        self.told_bytes = max(self.told_bytes, self.reserved_bytes)
        self.max_streams = max(self.max_streams, max_streams)

    def take_over(self, *, told_bytes: int, max_streams: int) -> None:
        """Take into account what peers were told by the process that this one has replaced."""
        self.told_bytes = max(self.told_bytes, told_bytes)
        self.max_streams = max(self.max_streams, max_streams)

    def allowance(self, used: int, *, moved: int) -> int:
        """Return how many bytes a direction may hold in all that uses `used` of the pool and has moved `moved` so far.

        It may use at most half of what it has moved: so it grows by half in each round trip, and one that stops early
        has little to keep.
        """
        closed = self.pool_bytes
        for tier in TIERS:
            closed //= 2
            if moved < tier:
                break
        else:
            closed = 0
        share = (self.pool_bytes - closed - self.pool_used_bytes + used) // POOL_SHARE
        grown = WINDOW_INITIAL + moved // 2
        if share > grown:
            share = grown
        if share <= 0:
            return self.reserved_bytes
        allowed = self.reserved_bytes + share
        return allowed if allowed < WINDOW_MAX else WINDOW_MAX

    def initial_window(self) -> int:
        """Return the window of a new stream: generous while three quarters of the pool are free, else the reservation.

        Idle streams keep what they were granted; the bound keeps them from using up what busy ones need.
        """
        plenty = self.pool_used_bytes < self.pool_bytes // 4
        return WINDOW_INITIAL if plenty else self.told_bytes

    def account(self, *, used: int, holding: int) -> int:
        """Note that a direction which used `used` bytes of the pool now holds `holding`; return what it uses now."""
        uses = max(0, holding - self.reserved_bytes)
        self.pool_used_bytes += uses - used
        return uses
