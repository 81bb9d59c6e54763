"""What an HTTP client is still to get. Knows its socket, and not what the bytes mean."""

import contextlib
from collections import deque

from goreprox.net.sockets import Socket, send_some
from goreprox.protocol.budget import Budget


class WriteBuffer:
    """Bytes that wait for room in a socket; the budget lends what they take."""

    def __init__(self, budget: Budget) -> None:
        """Have nothing to send."""
        self._budget = budget
        self._chunks: deque[bytes] = deque()
        self._held = 0
        """What the budget has lent."""

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def append(self, data: bytes) -> None:
        """Send these bytes, not empty, after all others."""
        self._chunks.append(data)

    def send(self, sock: Socket) -> None:
        """Give the socket what it takes.

        Raises:
            OSError: the client is gone.
        """
        chunks = self._chunks
        with contextlib.suppress(BlockingIOError, InterruptedError):  # it takes no more now
            while chunks:
                sent, complete = send_some(sock, chunks)
                self._drop(sent)
                if not complete:
                    break
        if chunks or self._held:
            self._held = self._budget.account(held=self._held, holding=sum(map(len, chunks)))

    def clear(self) -> None:
        """Send nothing of it any more."""
        self._chunks.clear()
        self._held = self._budget.account(held=self._held, holding=0)

    def _drop(self, count: int) -> None:
        chunks = self._chunks
        while count:
            first = chunks[0]
            if len(first) > count:
                chunks[0] = first[count:]
                return
            count -= len(first)
            chunks.popleft()
