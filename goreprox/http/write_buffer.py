"""What is still to be written to an HTTP client."""

import contextlib
from collections import deque

from goreprox.net.sockets import Socket, send_some
from goreprox.protocol.budget import Budget


class WriteBuffer:
    """Bytes that wait for room in a socket; they count in the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._chunks: deque[bytes] = deque()
        self._held = 0
        """Bytes of the budget that it uses."""

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def append(self, data: bytes) -> None:
        """Add bytes, not empty, behind all others."""
        self._chunks.append(data)

    def send(self, sock: Socket) -> None:
        """Write as much as the socket takes.

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
            self._held = self._budget.account(used=self._held, holding=sum(map(len, chunks)))

    def clear(self) -> None:
        """Drop everything."""
        self._chunks.clear()
        self._held = self._budget.account(used=self._held, holding=0)

    def _drop(self, count: int) -> None:
        chunks = self._chunks
        while count:
            first = chunks[0]
            if len(first) > count:
                chunks[0] = first[count:]
                return
            count -= len(first)
            chunks.popleft()
