"""Several edge processes on the same ports, under a parent that restarts a crashed one and passes signals on.

The parent carries no traffic. A worker reads its job from standard input, then a byte for each signal of the parent,
and the end of file when the parent ends, however it does. (Signals themselves would reach a worker twice where a
supervisor sends them to all processes of a service.) A worker writes to standard output that it is ready, or why it
cannot start. It has a lock and an incarnation of its own, so that the successor of a killed one proves its death.

Not by `multiprocessing`, because its spawn method keeps another process (the resource tracker), imports the main module
again in each worker, and starts workers in the parent's process group, whose signals they must not get.
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
from goreprox.roles.edge import run as run_edge
from goreprox.roles.entrances import entrances

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
STABLE_S = 10.0
"""After a worker has lived this long, the backoff begins anew."""
_CODE: Final = "import sys; sys.path[:] = {path!r}; from goreprox.roles.workers import main; sys.exit(main())"
"""Not `-m`, which searches the working directory first, where the parent may not."""
_STDIN: Final = 0
_STDOUT: Final = 1
_SIZE_BYTES: Final = 4
_STOP: Final = b"s"
_FORCE: Final = b"h"


class Job(NamedTuple):
    """What a worker is to do; sent as a pickle."""

    config: EdgeConfig
    number: int


async def run(config: EdgeConfig) -> None:
    """Run `config.workers` edges until a signal has ended them all.

    Raises:
        StartError: one of them cannot start; the others were ended.
    """
    worker = dataclasses.replace(config, workers=1, clients=dataclasses.replace(config.clients, reuse_port=True))
    parent = Parent([Job(worker, number) for number in range(config.workers)])
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
    """Keeps one process running for each job, until it is to stop."""

    def __init__(self, jobs: list[Job]) -> None:
        super().__init__()
        self.jobs = jobs
        self.error: str | None = None
        """Why a worker could not start."""
        self.hung_up = _refuse
        self._processes: dict[int, Process] = {}
        self._starting = {job.number for job in jobs}
        """Workers that have never been ready."""

    def _signalled(self) -> None:
        super()._signalled()
        for process in self._processes.values():
            _send(process, _FORCE if self.forced else _STOP)

    async def keep(self, job: Job) -> None:
        """Run a worker, and restart it whenever it ends."""
        pause_s = BACKOFF_MIN_S
        while not self.stop.is_set():
            began = self._loop.time()
            how = await self._run(job)
            if self.stop.is_set():
                break
            if self._loop.time() - began > STABLE_S:
                pause_s = BACKOFF_MIN_S
            logger.bind(event="worker_ended", worker=job.number).warning("{}; restarting in {:g} s", how, pause_s)
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
        _send(process, len(data).to_bytes(_SIZE_BYTES, "big") + data)
        if self.stop.is_set():  # since we began to start it
            _send(process, _FORCE if self.forced else _STOP)
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


def _refuse() -> None:
    logger.bind(event="reload_failed").error("workers cannot be reloaded; restart their parent")


def _send(process: Process, data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)


class Worker(Lifetime):
    """A lifetime that the parent controls: its end, too, is a signal. Signals from elsewhere only stop."""

    def __enter__(self) -> "Worker":
        self._loop.add_reader(_STDIN, self._received)
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._loop.remove_reader(_STDIN)

    def _signalled(self) -> None:
        self.stop.set()

    def _received(self) -> None:
        data = os.read(_STDIN, 64)
        self.stop.set()
        if _FORCE in data:
            self._force.set()
        if not data:
            self._loop.remove_reader(_STDIN)

    def ready(self, text: str, **ports: object) -> None:
        """Tell the parent that this worker is ready."""
        self._extend_no_more()
        _report(**ports)

    def tell(self, text: str) -> None:
        """Do nothing: the parent talks to the supervisor."""


def _report(**values: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent has ended: so has standard input
        os.write(_STDOUT, json.dumps(values).encode() + b"\n")


def _read_job() -> Job | None:
    """Read the job and no byte more; None if the parent has ended."""
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
    await run_edge(config, life=Worker())


def main() -> int:
    """Run a worker."""
    job = _read_job()
    if job is None:
        return 0
    log = job.config.process.log
    configure(log.level, as_json=log.json)
    logger.configure(extra={"worker": job.number})
    try:
        asyncio.run(_work(job.config))
    except GoreproxError as exc:
        _report(error=str(exc))
        return exc.exit_code
    return 0
