"""How streams end: last words until the peer has acknowledged them, and resets until they have arrived.

A stream is forgotten at once when it is refused or aborted, but the peer must learn of it, across outages too. So its
last event is kept until the peer has acknowledged the message that carried it, or no longer lists the stream.
"""

import itertools
from collections import deque
from collections.abc import Callable

from goreprox.protocol.events import Abort, Refuse
from goreprox.protocol.limits import RESET_LINGER_S


class Endings:
    """Streams whose end the peer may not know."""

    __slots__ = ("_resetting", "carried", "last_words")

    def __init__(self) -> None:
        self.last_words: dict[int, Refuse | Abort] = {}
        """By stream id."""
        self.carried: deque[tuple[int, int]] = deque()
        """Refuses, Aborts and Resets of this epoch, in order: the number of the message that carried it, the stream."""
        self._resetting: dict[int, float] = {}
        """Streams in state RESETTING, and when they are to be aborted; the earliest is first."""

    def acknowledge(self, count: int) -> list[int]:
        """Drop what the first `count` messages carried, and return whose end that was."""
        known = []
        carried = self.carried
        while carried and carried[0][0] < count:
            stream_id = carried.popleft()[1]
            self.last_words.pop(stream_id, None)
            known.append(stream_id)
        return known

    def keep_listed(self, listed: Callable[[int], bool]) -> None:
        """Drop the last words of streams that the peer no longer lists: it knows that they ended."""
        self.last_words = {stream_id: word for stream_id, word in self.last_words.items() if listed(stream_id)}

    def start_reset(self, stream_id: int, now: float) -> None:
        """Give a reset `RESET_LINGER_S` to arrive."""
        self._resetting[stream_id] = now + RESET_LINGER_S

    def restart_resets(self, now: float) -> None:
        """Give all resets that long again: a new epoch is established."""
        self._resetting = dict.fromkeys(self._resetting, now + RESET_LINGER_S)

    def end_reset(self, stream_id: int) -> None:
        """Forget a stream that has ended."""
        self._resetting.pop(stream_id, None)

    @property
    def deadline(self) -> float | None:
        """When the first reset is overdue."""
        return next(iter(self._resetting.values()), None)

    def overdue(self, now: float) -> list[int]:
        """Return the streams whose reset has not arrived in time."""
        return [stream_id for stream_id, _ in itertools.takewhile(lambda item: item[1] <= now, self._resetting.items())]
