"""Names of hosts to connect to, whose addresses are looked up in a thread and kept for a moment."""

import asyncio
from typing import Final

from brokers import SocketAddress, interleaved, resolve
from goreprox.config.addresses import Address
from goreprox.process.clock import clock

RESOLVED_FOR_S: Final = 5.0
"""How long the addresses of a name are used before it is looked up again."""
MAX_ADDRESSES: Final = 16
"""Addresses of one name that are tried: the last one 4 s after the first. A DNS message has room for thousands."""


class Name:
    """A host and a port."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._at = 0.0
        self._found: list[SocketAddress] = []
        self._lookup: asyncio.Task[list[SocketAddress]] | None = None

    @property
    def known(self) -> list[SocketAddress] | None:
        """The socket addresses; None: they have to be resolved first."""
        return self._found if self._found and clock() - self._at < RESOLVED_FOR_S else None

    async def resolve(self) -> list[SocketAddress]:
        """Resolve it; concurrent calls share one lookup, as each lookup has a thread.

        Raises:
            OSError: it has no address.
            UnicodeError: it is not a valid host name.
        """
        if self._lookup is None:
            host = self._address.host
            self._lookup = asyncio.get_running_loop().create_task(self._look_up(), name=f"look up {host}")
            self._lookup.add_done_callback(self._looked_up)
        return await asyncio.shield(self._lookup)

    def _looked_up(self, lookup: "asyncio.Task[list[SocketAddress]]") -> None:
        self._lookup = None
        if not lookup.cancelled():
            lookup.exception()  # every caller may be gone

    async def _look_up(self) -> list[SocketAddress]:
        addresses = interleaved(await resolve(self._address.host, self._address.port))[:MAX_ADDRESSES]
        self._at, self._found = clock(), addresses
        return addresses
