"""Processes that are forks of one that has imported goreprox already: each saves the CPU time of its imports.

`python -m goreprox` itself, from its first import on, is run by tests of standard streams and of what is printed.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from goreprox.__main__ import main

FORKS: Final = multiprocessing.get_context("forkserver")
COMMANDS: Final = ("events", "keys", "reload", "status", "upgrade")
FORKS.set_forkserver_preload(
    ["goreprox.cli.main", "goreprox.roles.server", "goreprox.roles.workers"]
    + [f"goreprox.cli.{command}" for command in COMMANDS]
)


def _run(
    arguments: tuple[str, ...],
    environment: dict[str, str],
    directory: Path,
    stderr: Connection,
    stdout: Connection | None,
) -> None:
    """Be `python -W error -m goreprox ARGUMENTS`; multiprocessing has put /dev/null in the place of stdin."""
    for number, pipe in ((1, stdout), (2, stderr)):
        if pipe is not None:
            os.dup2(pipe.fileno(), number)
            pipe.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    warnings.simplefilter("error")
    sys.argv = ["goreprox", *arguments]
    sys.exit(main())


async def _read(pipe: Connection) -> asyncio.StreamReader:
    """Read a pipe, which is closed at its end."""
    reader = asyncio.StreamReader()
    file = os.fdopen(os.dup(pipe.fileno()), "rb", 0)
    pipe.close()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    return reader


class Fork:
    """What tests use of `asyncio.subprocess.Process`."""

    def __init__(
        self,
        process: multiprocessing.process.BaseProcess,
        stderr: asyncio.StreamReader,
        stdout: asyncio.StreamReader | None,
    ) -> None:
        self._process = process
        self.stderr = stderr
        self.stdout = stdout

    @classmethod
    async def start(cls, *arguments: str, env: dict[str, str], cwd: Path, stdout: bool = False) -> "Fork":
        """Start it; `stdout` says whether its output is read too."""
        err, its_err = FORKS.Pipe(duplex=False)
        out, its_out = FORKS.Pipe(duplex=False) if stdout else (None, None)
        process = FORKS.Process(target=_run, args=(arguments, env, cwd, its_err, its_out))
        process.start()
        its_err.close()
        if out is None or its_out is None:
            return cls(process, await _read(err), None)
        its_out.close()
        return cls(process, await _read(err), await _read(out))

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        if self.returncode is None:
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            sentinel = os.dup(self._process.sentinel)  # several may wait
            loop.add_reader(sentinel, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(sentinel)
                os.close(sentinel)
        code = self.returncode
        assert code is not None
        return code


async def run_command(cwd: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command to its end; return its exit code, output and errors."""
    process = await Fork.start(*arguments, env=dict(os.environ), cwd=cwd, stdout=True)
    assert process.stdout is not None
    try:
        out, err, code = await asyncio.gather(process.stdout.read(), process.stderr.read(), process.wait())
    finally:
        process.kill()
    return code, out.decode(), err.decode()
