"""Roles that can be upgraded in place, and the command that does it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.support.processes import Handler, Process, Tunnel, logging_to
from tests.support.sockets import HOST
from tests.support.waiting import DEADLINE_S, eventually

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
MODULE = ("-m", "goreprox")


async def start(
    made: Tunnel,
    *arguments: str,
    path: str = "",
    program: Sequence[str] = MODULE,
    before: Sequence[str] = (),
    env: Mapping[str, str] = NOTHING,
) -> Process:
    """Start a role by the interpreter, which is what an upgrade starts anew; `path` goes before its modules.

    `before` goes before the interpreter in the command line.
    """
    started = await asyncio.create_subprocess_exec(
        *(*before, sys.executable, "-W", "error", *program, *arguments, "--insecure", *logging_to(made.tmp)),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **env, "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))},
        cwd=made.tmp,
    )
    process = Process(started)
    made._stack.push_async_callback(process.stop)
    await process.ready()
    return process


async def provide(
    made: Tunnel,
    *options: str,
    path: str = "",
    program: Sequence[str] = MODULE,
    before: Sequence[str] = (),
    env: Mapping[str, str] = NOTHING,
) -> Process:
    """Start a provider that can be upgraded."""
    where = (f"{HOST}:{made.target_port}", "--server", f"{HOST}:{made.relay.port}")
    return await start(made, "provider", *where, *options, path=path, program=program, before=before, env=env)


async def run(
    made: Tunnel,
    target: Handler,
    *options: str,
    path: str = "",
    program: Sequence[str] = MODULE,
    before: Sequence[str] = (),
    env: Mapping[str, str] = NOTHING,
) -> None:
    """Start a server, and a provider of `target` that can be upgraded."""
    await made.target(target)
    await made.serve()
    made.provider = await provide(made, *options, path=path, program=program, before=before, env=env)
    await eventually(lambda: made.server.events("peer_up"), "the server knows the provider")


async def upgrade(tmp: Path, *args: str) -> tuple[int, str, str]:
    """Run the command; return its exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "goreprox", "upgrade", "--runtime-dir", str(tmp / "run"), *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def upgraded(tmp: Path, connections: int) -> None:
    code, out, err = await upgrade(tmp, "--role", "provider")
    assert not code, err
    assert f"; {connections} connection" in out
