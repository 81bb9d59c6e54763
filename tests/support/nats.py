"""nats-servers, alone and as a cluster, each a process that tests may kill and start again at the same ports."""

import asyncio
import contextlib
import signal
import socket
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Self

from tests.support.programs import program, reserved_port
from tests.support.sockets import HOST
from tests.support.waiting import eventually

DEPLOY = Path(__file__).parents[2] / "deploy/nats"
SETTINGS = (DEPLOY / "settings.conf").read_text()


def matches(pattern: str, subject: str) -> bool:
    """Compare them as a server does (docs.nats.io, subjects)."""
    wanted, got = pattern.split("."), subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(got) > index
        if index >= len(got) or part not in ("*", got[index]):
            return False
    return len(wanted) == len(got)


class NatsServer:
    """A server with its configuration."""

    def __init__(self, directory: Path, port: int, more: str = "") -> None:
        """Listen for clients at `port`; `more` is configuration, too."""
        directory.mkdir(exist_ok=True)
        self.directory, self.port = directory, port
        self.config = directory / "nats.conf"
        self.more = more
        self.settings = SETTINGS
        self.whole: str | None = None
        """The configuration, if it is not made of the rest."""
        self.process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"nats://{HOST}:{self.port}"

    def configure(self) -> None:
        made = f'listen: "{HOST}:{self.port}"\n{self.settings}{self.more}'
        self.config.write_text(made if self.whole is None else self.whole)

    async def start(self) -> None:
        self.configure()
        with (self.directory / "nats.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(program("nats-server"), "-c", str(self.config)),
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                cwd=self.directory,
            )
        await eventually(self._responds, "the server responds")

    def _responds(self) -> bool:
        assert self.process is not None and self.process.returncode is None, self.log
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return True
        return False

    @property
    def log(self) -> str:
        return (self.directory / "nats.log").read_text()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def reload(self) -> None:
        """Let it read its configuration again, and wait until it has."""
        count = self.reloads
        self.signal(signal.SIGHUP)
        await eventually(lambda: self.reloads > count, "the configuration is read")

    @property
    def reloads(self) -> int:
        return self.log.count("Reloaded server configuration")

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def retire(self) -> None:
        """End it as for an upgrade: it tells its clients, and ends once they have gone (lame duck mode)."""
        self.signal(signal.SIGUSR2)
        assert self.process is not None
        await self.process.wait()


class NatsCluster:
    """Several servers, each with a route to every other one."""

    def __init__(self, servers: Sequence[NatsServer], stack: contextlib.AsyncExitStack) -> None:
        self.servers = servers
        self.stack = stack

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    def options(self, option: str) -> list[str]:
        """Return the options that name all servers."""
        return [part for url in self.urls for part in (option, url)]

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, tmp: Path, size: int, *, name: str = "cluster", more: str = "") -> AsyncIterator[Self]:
        """Run so many servers with this configuration."""
        async with contextlib.AsyncExitStack() as stack:
            ports = [stack.enter_context(reserved_port()) for _ in range(size)]
            routes = [stack.enter_context(reserved_port()) for _ in range(size)]
            among = ", ".join(f'"nats://{HOST}:{route}"' for route in routes)
            servers = []
            for number, (port, route) in enumerate(zip(ports, routes, strict=True)):
                joined = (
                    f'server_name: "{name}-{number}"\n'
                    f'cluster {{ name: "{name}", listen: "{HOST}:{route}", routes: [{among}], no_advertise: true }}\n'
                )
                servers.append(NatsServer(tmp / f"{name}-{number}", port, (joined if size > 1 else "") + more))
            for server in servers:
                stack.push_async_callback(server.kill)
            await asyncio.gather(*(server.start() for server in servers))
            yield cls(servers, stack)
