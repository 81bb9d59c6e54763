"""Finding out which peer a closed connection belonged to: libzmq does not say, but sending to that peer fails."""

import asyncio
import enum
from collections.abc import Callable
from typing import Final

AGAIN_S: Final = 0.05
"""libzmq may report a disconnection a moment before it forgets the peer."""
READ_TURNS: Final = 8
"""Turns of the loop in which last messages are read, 8 MiB each: twice what a session keeps in flight."""


class _State(enum.Enum):
    IDLE = enum.auto()
    """No connection was closed within the last `AGAIN_S`."""
    PROBED = enum.auto()
    """One was: peers have been probed, and will be once more when the timer fires."""
    CLOSED_AGAIN = enum.auto()
    """Another one was since: the timer will start anew."""


class Prober:
    """Probes all peers after each disconnection, but at most once in `AGAIN_S`.

    The bound matters since anyone can open and close any number of connections.
    """

    def __init__(self, *, probe: Callable[[], None], readable: Callable[[], bool]) -> None:
        """`probe` sends something to every peer; `readable` tells whether messages of peers wait to be read."""
        self._probe = probe
        self._readable = readable
        self._loop = asyncio.get_running_loop()
        self._state = _State.IDLE
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def disconnected(self) -> None:
        """Note that some connection was closed."""
        if self._state is _State.IDLE:
            self._loop.call_soon(self._probe_when_read, READ_TURNS)
            self._start_timer()
        else:
            self._state = _State.CLOSED_AGAIN

    def close(self) -> None:
        """Probe no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _start_timer(self) -> None:
        self._state = _State.PROBED
        self._timer = self._loop.call_later(AGAIN_S, self._on_timer)

    def _on_timer(self) -> None:
        before, self._state = self._state, _State.IDLE
        self._probe_when_read(READ_TURNS)
        if before is _State.CLOSED_AGAIN:
            self._start_timer()

    def _probe_when_read(self, turns: int) -> None:
        """Read what a peer sent before its connection was closed; only then may it count as lost."""
        if self._closed:
            return
        if turns and self._readable():
            self._loop.call_soon(self._probe_when_read, turns - 1)
        else:
            self._probe()
