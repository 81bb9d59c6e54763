"""Messages for peers whose pipes at libzmq are full.

libzmq's high-water marks count messages; these queues count bytes, too.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from brokers.carrier import Buffer

OUTBOX_BYTES: Final = 16 * 1024 * 1024
OUTBOX_MESSAGES: Final = 16_384
"""Of 0.4 KiB each beside their bytes: 6 MiB."""
RETRY_S: Final = 0.02


@dataclass(slots=True)
class _Queue:
    messages: deque[list[Buffer]] = field(default_factory=deque)
    size: int = 0
    """Bytes of all frames."""


class Outboxes:
    """The queues of a broker, one for each peer that is slow at the moment.

    A queue that exceeds `OUTBOX_BYTES` or `OUTBOX_MESSAGES` is dropped as a whole.
    """

    def __init__(
        self,
        *,
        transmit: Callable[[bytes, list[Buffer]], bool],
        overflowed: Callable[[bytes, int], None],
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        """Send by `transmit`, which returns False if a pipe is full; tell `overflowed` how many messages were dropped.

        Both may send again. `call_later` starts a timer (seconds).
        """
        self._transmit = transmit
        self._overflowed = overflowed
        self._call_later = call_later
        self._queues: dict[bytes, _Queue] = {}
        self._timer_runs = False

    def send(self, key: bytes, frames: list[Buffer]) -> None:
        """Send a message to the peer with the routing id `key`, now or when there is room."""
        queue = self._queues.get(key)
        if queue is None:
            if self._transmit(key, frames):
                return
            queue = self._queues[key] = _Queue()
            self._start_timer()
        queue.messages.append(frames)
        queue.size += sum(map(len, frames))
        if queue.size > OUTBOX_BYTES or len(queue.messages) > OUTBOX_MESSAGES:
            del self._queues[key]
            self._overflowed(key, len(queue.messages))

    def retry(self) -> None:
        """Send what there is room for by now."""
        if not self._queues:
            return
        for key in list(self._queues):
            while (queue := self._queues.get(key)) is not None and self._transmit(key, queue.messages[0]):
                queue.size -= sum(map(len, queue.messages.popleft()))
                if not queue.messages:
                    self.discard(key)

    def discard(self, key: bytes) -> None:
        """Drop what waits for a peer."""
        self._queues.pop(key, None)

    def close(self) -> None:
        """Drop everything; nothing is sent any more."""
        self._queues.clear()

    def size(self, key: bytes) -> int:
        """Return how many bytes wait for a peer."""
        queue = self._queues.get(key)
        return queue.size if queue is not None else 0

    @property
    def sizes(self) -> dict[bytes, tuple[int, int]]:
        """Messages and bytes that wait, by routing id."""
        return {key: (len(queue.messages), queue.size) for key, queue in self._queues.items()}

    def _start_timer(self) -> None:
        if not self._timer_runs:
            self._timer_runs = True
            self._call_later(RETRY_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_runs = False
        self.retry()
        if self._queues:
            self._start_timer()
