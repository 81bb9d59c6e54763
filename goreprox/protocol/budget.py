"""One memory budget for all streams of a process, both directions.

Half of it is kept for floors: every half-stream may always hold `floor_bytes`. The rest is lent beyond the
floors. No half may borrow more than a fifth of what is free to it, so that the free part never ends and
latecomers still get theirs (dynamic thresholds, Choudhury and Hahne, IEEE/ACM ToN 6(2), 1998).
"""

from goreprox.protocol.limits import MIB, WINDOW_INITIAL, WINDOW_MAX

HALVES = 2
"""A stream has two in each process: what it sends and what it receives."""
SHARE = 5
"""A half may borrow this part of the free bytes: with alpha = 1/4, alpha / (1 + alpha) = 1/5."""
TIERS = (MIB, 16 * MIB, 256 * MIB)
"""Half of the loans is for halves that have moved less than the first of these, half of the rest for those below the
second, and so on: readers that stopped, whose loans cannot be called back, leave something to those that go on."""
FLOOR_MIN = 2048
FLOOR_MAX = WINDOW_INITIAL


class Budget:
    """Bytes that streams may buffer.

    Floors: `max_streams * 2 halves * floor <= total / 2`. Loans: `total / 2` in sum. So all buffers together
    stay below `total_bytes`.
    """

    __slots__ = ("borrowed_bytes", "floor_bytes", "loan_bytes", "max_streams")

    def __init__(self, *, total_bytes: int, max_streams: int) -> None:
        """Divide `total_bytes` among at most `max_streams`.

        Raises:
            ValueError: not even 2 KiB per half-stream.
        """
        floor = total_bytes // 2 // HALVES // max_streams
        if floor < FLOOR_MIN:
            least = FLOOR_MIN * 2 * HALVES * max_streams
            raise ValueError(f"{total_bytes} bytes for {max_streams} streams, expected at least {least}")
        self.floor_bytes = min(floor, FLOOR_MAX)
        self.loan_bytes = total_bytes // 2
        self.max_streams = max_streams
        self.borrowed_bytes = 0

    def allowance(self, held: int, *, moved: int) -> int:
        """Bytes that a half which has borrowed `held`, and moved so many bytes so far, may hold in all.

        No more than half of what it moved, as its loan: it grows by half in each round trip, and who stops early has
        little to keep.
        """
        kept = self.loan_bytes
        for tier in TIERS:
            kept //= 2
            if moved < tier:
                break
        else:
            kept = 0
        loan = (self.loan_bytes - kept - self.borrowed_bytes + held) // SHARE
        grown = WINDOW_INITIAL + moved // 2
        if loan > grown:
            loan = grown
        if loan <= 0:
            return self.floor_bytes
        allowed = self.floor_bytes + loan
        return allowed if allowed < WINDOW_MAX else WINDOW_MAX

    def initial_window(self) -> int:
        """Window of a new stream: generous while three quarters of the loans are free, else the floor.

        Idle streams hold what they were granted; the bound keeps them from eating what busy ones need.
        """
        plenty = self.borrowed_bytes < self.loan_bytes // 4
        return WINDOW_INITIAL if plenty else self.floor_bytes

    def account(self, *, held: int, holding: int) -> int:
        """Note that a half which had borrowed `held` now holds `holding` bytes; return what it borrows now."""
        borrows = max(0, holding - self.floor_bytes)
        self.borrowed_bytes += borrows - held
        return borrows
