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
FORKS.set_forkserver_preload(["goreprox.cli.main", "goreprox.roles.server", "goreprox.roles.workers"])


def _run(arguments: tuple[str, ...], environment: dict[str, str], directory: Path, stderr: Connection) -> None:
    """Be `python -W error -m goreprox ARGUMENTS`; multiprocessing has put /dev/null in the place of stdin."""
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    warnings.simplefilter("error")
    sys.argv = ["goreprox", *arguments]
    sys.exit(main())


class Fork:
    """What tests use of `asyncio.subprocess.Process`."""

    def __init__(self, process: multiprocessing.process.BaseProcess, stderr: asyncio.StreamReader) -> None:
        self._process = process
        self.stderr = stderr

    @classmethod
    async def start(cls, *arguments: str, env: dict[str, str], cwd: Path) -> "Fork":
        ours, theirs = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=_run, args=(arguments, env, cwd, theirs))
        process.start()
        theirs.close()
        stderr = asyncio.StreamReader()
        pipe = os.fdopen(os.dup(ours.fileno()), "rb", 0)
        ours.close()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stderr), pipe)
        return cls(process, stderr)

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
