"""A peer inside the broker's own process."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from brokers.carrier import Buffer, LinkCondition, Receiver
from brokers.envelope import Announce, Leave, control
from brokers.inbox import Inbox
from brokers.peers import PeerName


class LocalPeer:
    """The carrier of such a peer (brokers.Carrier); `Router.attach` makes one."""

    def __init__(
        self,
        name: PeerName,
        receiver: Receiver,
        *,
        route: "Callable[[LocalPeer, list[Buffer]], None]",
        address_of: Callable[[bytes], str | None],
        link_condition: Callable[[bytes], LinkCondition | None],
    ) -> None:
        """Call `route` with each message for the broker.

        By a peer's id, `address_of` is its network address, and `link_condition` that of its connection, if known.
        """
        self.label = "embedded broker"
        self.name = name
        self.link_condition = link_condition
        self._route = route
        self._inbox = Inbox(self, receiver, address_of=address_of)
        self._queue: deque[list[Buffer]] = deque()
        self._loop = asyncio.get_running_loop()

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        """Send without blocking; if the peer's outbox overflows, the receiver is told that the peer is down."""
        self._route(self, [peer_id, *frames])
        return True

    def announce(self, attributes: Mapping[str, object]) -> None:
        """Replace our attributes in the peer list."""
        self._route(self, control(Announce(attributes)))

    async def close(self, *, linger_s: float) -> None:
        """Leave; nothing is queued here."""
        self._route(self, control(Leave()))

    def deliver(self, frames: list[Buffer], *, later: bool) -> None:
        """Pass on a message from the broker: at once, or in the next turn of the loop."""
        if later or self._queue:
            if not self._queue:
                self._loop.call_soon(self._deliver_queued)
            self._queue.append(frames)
        else:
            self._inbox.receive(frames)

    def _deliver_queued(self) -> None:
        """Pass on what is queued by now; what these messages bring about waits for the next turn."""
        queue, self._queue = self._queue, deque()
        for frames in queue:
            self._inbox.receive(frames)
