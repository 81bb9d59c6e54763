"""A tunnel with keys between real processes."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.support.forks import Fork, run_command
from tests.support.processes import Process, Tunnel, logging_to
from tests.support.servers import Handler
from tests.support.sockets import HOST
from tests.support.traffic import echo, read_digest, send_blocks
from tests.support.waiting import eventually


class Secured(Tunnel):
    """A tunnel with keys; everything of it lies in one directory."""

    def __init__(self, tmp: Path) -> None:
        super().__init__(tmp)
        self.state = tmp / "state"
        self.providers = self.edges = 0
        self.stdout: int | None = None
        """Where what is started writes, if that matters: then it is `python -m goreprox` and no fork."""

    async def start(
        self, command: str, *args: str, env: dict[str, str] | None = None, stdout: int | None = None
    ) -> Process:
        """Start a role: a fork, or a program where its standard output matters."""
        arguments = (command, *args, *logging_to(self.tmp))
        environment = {**os.environ, **(env or {})}
        if (stdout or self.stdout) is None:
            started = Process(await Fork.start(*arguments, env=environment, cwd=self.tmp))
        else:
            program = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", "-m", "goreprox", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=stdout or self.stdout,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=self.tmp,
            )
            started = Process(program)
        self._stack.push_async_callback(started.stop)
        return started

    async def serve(self, *args: str, port: int = 0, providers: int = 0, state: Path | None = None) -> Process:
        self.server = await self.start(
            *("server", "--listen", f"{HOST}:{port}", "--providers", f"{HOST}:{providers}", "--edges", f"{HOST}:0"),
            *("--state-dir", str(state or self.state), *args),
        )
        ready = await self.server.ready()
        clients, self.providers, self.edges = ready["clients"], number(ready["providers"]), number(ready["edges"])
        assert isinstance(clients, list)
        self.port = clients[0]
        return self.server

    async def provide(
        self,
        *args: str,
        target: int | None = None,
        connect: bool = True,
        join: str | None = "default",
        env: dict[str, str] | None = None,
        server: int | None = None,
    ) -> Process:
        joined = () if join is None else ("--join-file", str(self.join_file(join)))
        self.provider = await self.start(
            *("provider", f"{HOST}:{target or self.target_port}", "--server", f"{HOST}:{server or self.providers}"),
            *joined,
            *args,
            env=env,
        )
        await self.provider.ready()
        if connect:
            provider = self.provider
            await eventually(lambda: provider.events("peer_up"), "provider connected")
        return self.provider

    def join_file(self, name: str) -> Path:
        return self.state / "join" / f"{name}.join"

    async def keys(self, *args: str) -> str:
        """Run `goreprox keys`."""
        code, out, err = await run_command(self.tmp, "keys", *args, "--state-dir", str(self.state))
        assert code == 0, err
        return out

    async def transfers(self, blocks: int = 16) -> None:
        """Send 1 MiB there and back, and compare."""
        reader, writer = await self.connect()
        sent, (size, got) = await asyncio.gather(send_blocks(writer, blocks), read_digest(reader, size=blocks << 16))
        assert (size, got) == (blocks << 16, sent)
        writer.close()


def number(value: object) -> int:
    assert isinstance(value, int)
    return value


@contextlib.asynccontextmanager
async def secured(tmp: Path, handler: Handler = echo, *args: str) -> AsyncIterator[Secured]:
    """A server with keys and a target; providers are up to the test."""
    made = Secured(tmp)
    async with made._stack:
        await made.target(handler)
        await made.serve(*args)
        yield made
