"""Limits the rate of a service: its streams take turns, as fast as the rate allows, in each direction.

A stream that has no turn moves nothing, so TCP slows the writer down. A turn is the same number of bytes for each
stream, so their shares are equal, however many bytes each has.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from goreprox.protocol.limits import KIB

BURST_S: Final = 0.1
BURST_BYTES: Final = 64 * KIB
"""After a pause a rate lets through what it allows in `BURST_S`, or this, if that is less."""
TURNS_S: Final = 64
"""Turns in a second at full rate, within the bounds of a turn: a stream beside nine others waits for 0.15 s."""
TURN_BYTES: Final = (KIB, 64 * KIB)
"""The least and the most bytes of a turn."""
MAX_PACES: Final = 2048
"""More than a configuration can name and an edge can publish. What is beyond are names that were published before."""
PAUSE_S: Final = 0.001
"""The least time between two rounds: about what a loop's timer can tell."""


class Rate:
    """A rate in one direction, and the streams that wait for their turn: a token bucket.

    In any time t it grants at most `bytes_per_s` * t + `burst_bytes`. What was granted and not used is given back.
    """

    def __init__(self, clock: Callable[[], float], bytes_per_s: float | None = None) -> None:
        """Measure time by `clock`, in seconds; without `bytes_per_s` there is no limit."""
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Turns, None] = {}
        """The one whose turn is next in front."""
        self._timer: asyncio.TimerHandle | None = None
        self._at = clock()
        self._allow(bytes_per_s)
        self._tokens = self.burst_bytes

    @property
    def awaited(self) -> bool:
        """Whether a stream waits for its turn."""
        return bool(self._waiting)

    def set(self, bytes_per_s: float | None) -> None:
        """Allow another rate from now on."""
        self._refill()
        self._allow(bytes_per_s)
        self._tokens = min(self._tokens, self.burst_bytes)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._call_soon()

    def _allow(self, bytes_per_s: float | None) -> None:
        least, most = TURN_BYTES
        rate = most * TURNS_S if bytes_per_s is None else bytes_per_s
        self.bytes_per_s = bytes_per_s
        self.burst_bytes = max(rate * BURST_S, BURST_BYTES)
        self.turn_bytes = min(max(int(rate / TURNS_S), least), most)

    def take(self, turns: "Turns", wanted: int) -> int:
        """Return how many of the `wanted` bytes may be moved now; if none, it is to be called back."""
        if self.bytes_per_s is None:
            return wanted
        wanted = min(wanted, self.turn_bytes)
        if turns not in self._waiting:
            self._refill()
            if not self._waiting and self._tokens >= wanted:
                self._tokens -= wanted
                return wanted
            self._waiting[turns] = None
            self._call_soon()
        return 0

    def give_back(self, count: int) -> None:
        """Take back what was granted and not used."""
        self._tokens = min(self._tokens + count, self.burst_bytes)

    def leave(self, turns: "Turns") -> None:
        """Call it back no more."""
        self._waiting.pop(turns, None)

    def _refill(self) -> None:
        now = self._clock()
        if self.bytes_per_s is not None:
            self._tokens = min(self._tokens + (now - self._at) * self.bytes_per_s, self.burst_bytes)
        self._at = now

    def _call_soon(self) -> None:
        """Go on with those that wait once there is a turn for the next one."""
        if not self._waiting or self._timer is not None:
            return
        delay_s = 0.0
        if self.bytes_per_s is not None:
            delay_s = max((self.turn_bytes - self._tokens) / self.bytes_per_s, PAUSE_S)
        self._timer = self._loop.call_later(delay_s, self._go_on)

    def _go_on(self) -> None:
        """Give a turn to each that waits, as far as the rate allows."""
        self._timer = None
        self._refill()
        for turns in list(self._waiting):
            if self.bytes_per_s is not None and self._tokens < self.turn_bytes:
                break
            if turns not in self._waiting:
                continue  # it left because of another one's turn
            del self._waiting[turns]
            granted = self.turn_bytes
            if self.bytes_per_s is not None:
                self._tokens -= granted
            try:
                self.give_back(turns.use(granted))
            except Exception as exc:  # noqa: BLE001 -- a bug in one stream must not stop the others
                self._loop.call_exception_handler({"message": f"a turn of {turns}", "exception": exc})
        self._call_soon()


class Turns:
    """What a stream has of a rate, in one direction."""

    __slots__ = ("_go_on", "_granted", "_rate")

    def __init__(self, rate: Rate, go_on: Callable[[], None]) -> None:
        """`go_on` is called when it is the stream's turn, after `take` returned 0."""
        self._rate = rate
        self._go_on = go_on
        self._granted = 0
        """Bytes of the present turn that were not taken."""

    def take(self, wanted: int) -> int:
        """Return how many of the `wanted` bytes may be moved now; what is not moved is to be given back.

        If it returns 0, `go_on` is called once it is the stream's turn.
        """
        if self._granted:
            taken = min(wanted, self._granted)
            self._granted -= taken
            return taken
        return self._rate.take(self, wanted)

    @property
    def turn_bytes(self) -> int:
        """The most that is granted at once."""
        return self._rate.turn_bytes

    def give_back(self, count: int) -> None:
        """Give back what was taken and not moved."""
        self._rate.give_back(count)

    def use(self, granted: int) -> int:
        """Go on with a turn; return what is left of it."""
        self._granted = granted
        try:
            self._go_on()
        finally:
            left, self._granted = self._granted, 0
        return left

    def leave(self) -> None:
        """Wait for no turn any more: the stream has ended."""
        self._rate.leave(self)


class Pace:
    """The rates of a service, one for each direction."""

    def __init__(self, clock: Callable[[], float], bytes_per_s: float | None) -> None:
        self.up = Rate(clock, bytes_per_s)
        """From clients to targets."""
        self.down = Rate(clock, bytes_per_s)

    @property
    def awaited(self) -> bool:
        """Whether a stream waits for its turn."""
        return self.up.awaited or self.down.awaited

    def set(self, bytes_per_s: float | None) -> None:
        """Allow another rate in each direction from now on; None: any."""
        self.up.set(bytes_per_s)
        self.down.set(bytes_per_s)


class Paces:
    """The rates of all services that are limited."""

    def __init__(self, clock: Callable[[], float], rate_of: Callable[[str], float | None]) -> None:
        """Measure time by `clock`; `rate_of` returns the bytes per second of a service, None without a limit."""
        self._clock = clock
        self._rate_of = rate_of
        self._paces: dict[str, Pace] = {}
        """Those that streams have asked for."""

    def of(self, service: str) -> Pace | None:
        """Return the rates of a service; None: it has no limit."""
        pace = self._paces.get(service)
        rate = self._rate_of(service)
        if pace is None and rate is not None:
            if len(self._paces) >= MAX_PACES:
                self._paces = {name: each for name, each in self._paces.items() if each.awaited}
            pace = self._paces[service] = Pace(self._clock, rate)
        return pace

    def reconfigure(self, rate_of: Callable[[str], float | None]) -> None:
        """Take other rates: those that had one change at once, where there was none for new streams."""
        self._rate_of = rate_of
        for service, pace in self._paces.items():
            pace.set(rate_of(service))
