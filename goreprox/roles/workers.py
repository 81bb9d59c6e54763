"""Several edge processes on the same ports, under one parent that restarts a crashed one and passes signals on.

The parent carries no traffic. A worker's standard input brings its job, then a byte for each signal of the parent,
and ends when the parent does, however it does. (The signals themselves would come twice to a worker where a
supervisor sends them to all processes of a service.) Its standard output says that it is ready, or why it cannot
start. Each worker has a lock and an incarnation of its own: so the successor of a killed one proves its death.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import pickle
import sys
from asyncio.subprocess import PIPE, Process
from typing import Final, NamedTuple

from loguru import logger

from goreprox.config.roles import EdgeConfig
from goreprox.errors import GoreproxError, StartError
from goreprox.process.lifetime import Lifetime
from goreprox.process.log import configure
from goreprox.roles.edge import entrances
from goreprox.roles.edge import run as run_edge

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
STABLE_S = 10.0
"""A worker that lived so long is restarted without delay again."""
_CODE: Final = "import sys; sys.path[:] = {path!r}; from goreprox.roles.workers import main; sys.exit(main())"
"""`-m` would look for modules in the working directory first, where the parent may not."""
_STDIN: Final = 0
_STDOUT: Final = 1
_SIZE_BYTES: Final = 4
_STOP: Final = b"s"
_HURRY: Final = b"h"


class Job(NamedTuple):
    """What a worker is told to do."""

    config: EdgeConfig
    number: int
    log_level: str
    log_json: bool


async def run(config: EdgeConfig, *, log_level: str, log_json: bool) -> None:
    """Be the parent of `config.workers` edges until a signal has ended them all.

    Raises:
        StartError: one of them cannot start; none is left then.
    """
    worker = dataclasses.replace(config, workers=1, clients=dataclasses.replace(config.clients, reuse_port=True))
    parent = Parent([Job(worker, number, log_level, log_json) for number in range(config.workers)])
    with parent:
        parent.wait_for_ready(
            f"starting {config.workers} workers, which connect to {', '.join(map(str, config.brokers))}"
        )
        async with asyncio.TaskGroup() as group:
            for job in parent.jobs:
                group.create_task(parent.keep(job), name=f"worker {job.number}")
    if parent.error is not None:
        raise StartError(parent.error)


class Parent(Lifetime):
    """Keeps one process running for each job, until it is told to stop."""

    def __init__(self, jobs: list[Job]) -> None:
        """Start nothing yet."""
        super().__init__()
        self.jobs = jobs
        self.error: str | None = None
        """Why a worker could not start."""
        self._processes: dict[int, Process] = {}
        self._starting = {job.number for job in jobs}
        """Workers that have never been ready."""

    def _signalled(self) -> None:
        super()._signalled()
        for process in self._processes.values():
            _tell(process, _HURRY if self.hurried else _STOP)

    async def keep(self, job: Job) -> None:
        """Run a worker, and another one whenever it ends."""
        pause_s = BACKOFF_MIN_S
        while not self.stop.is_set():
            began = self._loop.time()
            end = await self._run(job)
            if self.stop.is_set():
                break
            if self._loop.time() - began > STABLE_S:
                pause_s = BACKOFF_MIN_S
            logger.bind(event="worker_ended", worker=job.number).warning("{}; restarting in {:g} s", end, pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self.stop.wait()
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)

    async def _run(self, job: Job) -> str:
        """Run a worker to its end; return how it ended."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _CODE.format(path=sys.path), stdin=PIPE, stdout=PIPE, process_group=0
            )
        except OSError as exc:
            return f"cannot be started: {exc.strerror}"
        self._processes[job.number] = process
        data = pickle.dumps(job)
        _tell(process, len(data).to_bytes(_SIZE_BYTES, "big") + data)
        if self.stop.is_set():  # since we began to start it
            _tell(process, _HURRY if self.hurried else _STOP)
        assert process.stdout is not None
        if report := await process.stdout.readline():
            self._reported(job, process.pid, **json.loads(report))
        code = await process.wait()
        del self._processes[job.number]
        return f"ended with code {code} (pid {process.pid})"

    def _reported(self, job: Job, pid: int, *, clients: list[int] | None = None, error: str | None = None) -> None:
        if error is not None:
            if not self._starting:
                logger.bind(event="worker_failed", worker=job.number).error("{}", error)
            elif self.error is None:
                self.error = error
                self._signalled()
                self._signalled()
            return
        logger.bind(event="worker_ready", worker=job.number, pid=pid).info("ready (pid {})", pid)
        if self._starting:
            self._starting.discard(job.number)
            if not self._starting:
                config = self.jobs[0].config
                found = entrances(config.clients, [(each, each.address.port) for each in config.clients.listeners])
                self.ready(f"{found}, {len(self.jobs)} workers", clients=clients, workers=len(self.jobs))


def _tell(process: Process, data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)


class Worker(Lifetime):
    """A lifetime of which the parent is the master: its end, too, is a signal. Signals from elsewhere only stop."""

    def __enter__(self) -> "Worker":
        """Listen to the parent, too."""
        self._loop.add_reader(_STDIN, self._told)
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._loop.remove_reader(_STDIN)

    def _signalled(self) -> None:
        self.stop.set()

    def _told(self) -> None:
        said = os.read(_STDIN, 64)
        self.stop.set()
        if _HURRY in said:
            self._hurry.set()
        if not said:
            self._loop.remove_reader(_STDIN)

    def ready(self, text: str, **ports: object) -> None:
        """Tell the parent."""
        self._extend_no_more()
        _report(**ports)

    def tell(self, text: str) -> None:
        """Leave the supervisor to the parent."""


def _report(**values: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: standard input will say so
        os.write(_STDOUT, json.dumps(values).encode() + b"\n")


def _read_job() -> Job | None:
    """Read the job and not a byte more; None if the parent is gone."""
    size, data = _SIZE_BYTES, b""
    while len(data) < size:
        more = os.read(_STDIN, size - len(data))
        if not more:
            return None
        data += more
        if size == _SIZE_BYTES == len(data):
            size += int.from_bytes(data, "big")
    job: Job = pickle.loads(data[_SIZE_BYTES:])  # noqa: S301 -- from our parent
    return job


async def _work(config: EdgeConfig) -> None:
    await run_edge(config, Worker())


def main() -> int:
    """Be a worker."""
    job = _read_job()
    if job is None:
        return 0
    configure(job.log_level, as_json=job.log_json)
    logger.configure(extra={"worker": job.number})
    try:
        asyncio.run(_work(job.config))
    except GoreproxError as exc:
        _report(error=str(exc))
        return exc.exit_code
    return 0
