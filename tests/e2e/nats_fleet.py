"""Edges and providers that meet at NATS servers, and connections whose every byte is checked."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from tests.e2e.roles import ANY, Client, echoed, meets
from tests.support.forks import Fork
from tests.support.processes import Process, Tunnel, logging_to, nothing_yet
from tests.support.traffic import Transfer, echo
from tests.support.waiting import eventually


class Fleet:
    """Edges and providers of an echo, connections that are idle, and some that never are."""

    def __init__(self, made: Tunnel) -> None:
        self.made = made
        self.edges: list[Process] = []
        self.providers: list[Process] = []
        self.idle: list[Client] = []
        self.transfers: list[Transfer] = []

    async def edge(self, *at: str) -> Process:
        edge = await self.made.start("edge", "--listen", ANY, *(part for each in at for part in ("--broker", each)))
        self.edges.append(edge)
        return edge

    async def provider(self, name: str, *at: str) -> Process:
        where = (part for each in at for part in ("--server", each))
        provider = await self.made.start("provider", str(self.made.target_port), "--name", name, *where)
        self.providers.append(provider)
        return provider

    async def connect(self, *names: str, transfers: int = 1) -> None:
        """Wait until all know each other, then open connections at each edge."""
        for edge in self.edges:
            for name in names:
                await meets(edge, name)
            port = await edge.port("clients")
            self.idle += [await self.made.connect(port) for _ in range(5)]
            self.transfers += [Transfer(await self.made.connect(port)) for _ in range(transfers)]
        await self.flows()

    async def flows(self) -> None:
        """Wait until bytes move in each transfer, and each idle connection responds."""
        before = [each.received for each in self.transfers]
        for client in self.idle:
            await echoed(client, b"still here")
        await eventually(
            lambda: all(each.received > at for each, at in zip(self.transfers, before, strict=True)), "bytes flow"
        )

    async def end(self) -> None:
        """Expect every byte, and that nothing was reset."""
        for each in self.transfers:
            await each.end()
        for client in self.idle:
            await echoed(client, b"to the end")
            client[1].close()

    def ups(self) -> list[int]:
        return [process.events("link_up") for process in (*self.edges, *self.providers)]


@contextlib.asynccontextmanager
async def fleet(tmp: Path) -> AsyncIterator[Fleet]:
    async with nothing_yet(tmp) as made:
        await made.target(echo)
        yield Fleet(made)


async def start_keyed(made: Tunnel, *arguments: str) -> Process:
    """Start a role that has a join string."""
    forked = await Fork.start(*arguments, *logging_to(made.tmp), env=dict(os.environ), cwd=made.tmp)
    process = Process(forked)
    made._stack.push_async_callback(process.stop)
    await process.ready()
    return process
