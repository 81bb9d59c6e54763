"""Starts programs as children of a process whose code may be replaced, and runs them to their end."""

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence

from goreprox.process.signals import blocked_signals


class ChildError(Exception):
    """A child has ended with another exit code than 0, and says why in one line."""


async def start(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    stdin: int = PIPE,
    stdout: int = PIPE,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start `command` in a process group of its own, with the environment `env` and no other.

    Raises:
        OSError: it cannot be started.
    """
    # Python 3.11 waits for a child in a thread, which may outlive it for a moment. No signal may be delivered there
    # that an upgrade is to hand over.
    with blocked_signals():
        return await asyncio.create_subprocess_exec(
            *command, env=env, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds, process_group=0
        )


async def output_of(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    data: bytes | None = None,
    pass_fds: Sequence[int] = (),
    timeout_s: float,
) -> str:
    """Run `command` to its end, or to that of this task; return its output. It reads `data`, if there are any.

    Raises:
        OSError: it cannot be started; TimeoutError if it takes longer than `timeout_s`.
        ChildError: it has failed.
    """
    stdin = DEVNULL if data is None else PIPE
    child = await start(command, env, stdin=stdin, stderr=PIPE, pass_fds=pass_fds)
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await child.communicate(data)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        lines = err.decode(errors="replace").split("\n")
        raise ChildError(next((line for line in reversed(lines) if line), f"exit code {child.returncode}"))
    return out.decode(errors="replace")
