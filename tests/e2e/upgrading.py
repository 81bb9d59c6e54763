"""Roles that can be upgraded in place, and the command that does it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypedDict, Unpack

from tests.support.forks import run_command
from tests.support.processes import WAIT_S, Handler, Process, Tunnel, logging_to
from tests.support.sockets import HOST
from tests.support.waiting import eventually

MODULE = ("-m", "goreprox")
NO_EXECVE: Final = """
import os, sys

def execve(path, arguments, environment):
    raise FileNotFoundError(2, "No such file or directory")

os.execve = execve
from goreprox.cli.main import main
sys.exit(main())
"""
"""A program whose new code goes missing after its preflight."""


class Start(TypedDict, total=False):
    """How a role is started."""

    path: str
    """Goes before its modules."""
    program: Sequence[str]
    """What the interpreter runs."""
    before: Sequence[str]
    """Goes before the interpreter in the command line."""
    env: Mapping[str, str]
    """Goes beside the environment."""


async def start(made: Tunnel, *arguments: str, **how: Unpack[Start]) -> Process:
    """Start a role by the interpreter, which is what an upgrade starts anew."""
    modules = filter(None, [how.get("path"), os.environ.get("PYTHONPATH")])
    started = await asyncio.create_subprocess_exec(
        *(*how.get("before", ()), sys.executable, "-W", "error", *how.get("program", MODULE)),
        *(*arguments, "--insecure", *logging_to(made.tmp)),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **how.get("env", {}), "PYTHONPATH": os.pathsep.join(modules)},
        cwd=made.tmp,
    )
    process = Process(started)
    made._stack.push_async_callback(process.stop)
    await process.ready()
    return process


async def provide(made: Tunnel, *options: str, **how: Unpack[Start]) -> Process:
    """Start a provider that can be upgraded."""
    where = (f"{HOST}:{made.target_port}", "--server", f"{HOST}:{made.relay.port}")
    return await start(made, "provider", *where, *options, **how)


async def run(made: Tunnel, target: Handler, *options: str, **how: Unpack[Start]) -> None:
    """Start a server, and a provider of `target` that can be upgraded."""
    await made.target(target)
    await made.serve()
    made.provider = await provide(made, *options, **how)
    await eventually(lambda: made.server.events("peer_up"), "the server knows the provider")


async def upgrade(tmp: Path, *args: str) -> tuple[int, str, str]:
    """Run the command; return its exit code, output and errors."""
    async with asyncio.timeout(WAIT_S):
        return await run_command(tmp, "upgrade", "--runtime-dir", str(tmp / "run"), *args)


async def upgraded(tmp: Path, connections: int) -> None:
    code, out, err = await upgrade(tmp, "--role", "provider")
    assert not code, err
    assert f"; {connections} connection" in out
