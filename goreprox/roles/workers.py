"""Several edge processes on the same ports, under a parent that restarts a crashed one and passes signals on.

The parent carries no traffic. A worker reads its job from standard input, then a byte for each signal of the parent, or
another configuration, and the end of file when the parent ends, however it does. (Signals themselves would reach a
worker twice where a supervisor sends them to all processes of a service.) A worker writes to standard output that it is
ready, or why it cannot start, and for each configuration whether it has taken it over. It has a lock and an incarnation
of its own, so that the successor of a killed one proves its death.

Not by `multiprocessing`, because its spawn method keeps another process (the resource tracker), imports the main module
again in each worker, and starts workers in the parent's process group, whose signals they must not get.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import pickle
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import Final, NamedTuple

from loguru import logger

from goreprox.config.roles import EdgeConfig
from goreprox.control.client import PARENT
from goreprox.control.message import Request
from goreprox.control.socket import Commands, serving
from goreprox.errors import ControlError, GoreproxError, StartError
from goreprox.monitor.health import Report, ask_ready
from goreprox.process.instance import INCARNATION_BYTES, Instance
from goreprox.process.lifetime import NO_UPGRADE, Lifetime, cannot_upgrade
from goreprox.process.log import configure
from goreprox.roles.dashboard import Dashboard
from goreprox.roles.edge import Apply, serve
from goreprox.roles.entrances import entrances
from goreprox.roles.health import Health
from goreprox.roles.reload import Reload

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
_CONFIGURE: Final = b"c"
_READ_BYTES: Final = 1 << 16
REPLY_S: Final = 10.0
"""How long a worker may take to take over a configuration."""


class Job(NamedTuple):
    """What a worker is to do; sent as a pickle."""

    config: EdgeConfig
    number: int


async def run(config: EdgeConfig, *, read: Callable[[], EdgeConfig]) -> None:
    """Run `config.workers` edges until a signal has ended them all. A reload gets the configuration by `read`.

    Raises:
        StartError: one of them cannot start; the others were ended.
    """
    process = config.process
    instance = Instance.acquire(process.lock_dir, PARENT, process.own_name, secrets.token_bytes(INCARNATION_BYTES))
    parent = Parent(config)
    health = Health(process.health, parent.report)
    reload = Reload(config, parent, health, read=read, apply=parent.reconfigure)
    async with health, Dashboard(process), serving(instance, reload.commands):
        with parent:
            parent.wait_for_ready(
                f"starting {config.workers} workers, which connect to {', '.join(map(str, config.brokers))}"
            )
            async with asyncio.TaskGroup() as group:
                for number in range(config.workers):
                    group.create_task(parent.keep(number), name=f"worker {number}")
    if parent.error is not None:
        raise StartError(parent.error)


def _for_workers(config: EdgeConfig) -> EdgeConfig:
    clients = dataclasses.replace(config.clients, reuse_port=True)
    process = dataclasses.replace(config.process, health=None, dashboard=None)  # the parent's
    return dataclasses.replace(config, workers=1, clients=clients, process=process)


class Parent(Lifetime):
    """Keeps one process running for each job, until it is to stop."""

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__()
        self._config = _for_workers(config)
        self._workers = config.workers
        self.error: str | None = None
        """Why a worker could not start."""
        self._processes: dict[int, _Running] = {}
        self._starting = set(range(config.workers))
        """Workers that have never been ready."""

    async def reconfigure(self, config: EdgeConfig) -> None:
        """Let all workers take over another configuration, or none of them.

        Raises:
            StartError: one of them cannot.
        """
        if self.stop.is_set() or self._starting:
            raise StartError("it is starting or shutting down")
        before, after, told = self._config, _for_workers(config), list[_Running]()
        try:
            while untold := [worker for worker in self._processes.values() if worker not in told]:
                told.append(untold[0])
                await untold[0].reconfigure(after)
        except StartError:
            for worker in told[:-1]:
                with contextlib.suppress(StartError):
                    await worker.reconfigure(before)
            raise
        self._config = after  # for those that are started from now on

    async def report(self) -> Report:
        """Return whether all workers that run are ready: the kernel gives clients to any of them."""
        if self.stop.is_set() or not self.was_ready:
            return Report("it is shutting down" if self.stop.is_set() else "it is starting", [])
        process = self._config.process
        try:
            answers = await ask_ready([process.lock_dir], roles=("edge",), name=process.own_name)
        except ControlError as exc:
            return Report(str(exc), [])
        reports = {answer.pid: answer.report for answer in answers}
        running = [worker.pid for worker in self._processes.values()]
        silent = Report("no worker runs, or one of them does not respond", [])
        found = [reports.get(pid, silent) for pid in running] or [silent]
        reason = next((report.reason for report in found if report.reason is not None), None)
        return Report(reason, sorted({service for report in found for service in report.missing}))

    def _signalled(self) -> None:
        super()._signalled()
        for worker in self._processes.values():
            worker.send(_FORCE if self.forced else _STOP)

    async def keep(self, number: int) -> None:
        """Run a worker, and restart it whenever it ends."""
        pause_s = BACKOFF_MIN_S
        while not self.stop.is_set():
            began = self._loop.time()
            how = await self._run(number)
            if self.stop.is_set():
                break
            if self._loop.time() - began > STABLE_S:
                pause_s = BACKOFF_MIN_S
            logger.bind(event="worker_ended", worker=number).warning("{}; restarting in {:g} s", how, pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self.stop.wait()
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)

    async def _run(self, number: int) -> str:
        """Run a worker to its end; return how it ended."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _CODE.format(path=sys.path), stdin=PIPE, stdout=PIPE, process_group=0
            )
        except OSError as exc:
            return f"cannot be started: {exc.strerror}"
        worker = self._processes[number] = _Running(process)
        worker.send(_framed(Job(self._config, number)))
        if self.stop.is_set():  # since we began to start it
            worker.send(_FORCE if self.forced else _STOP)
        assert process.stdout is not None
        if report := await process.stdout.readline():
            self._reported(number, process.pid, **json.loads(report))
        await worker.hear()
        code = await process.wait()
        del self._processes[number]
        return f"ended with code {code} (pid {process.pid})"

    def _reported(self, number: int, pid: int, *, clients: list[int] | None = None, error: str | None = None) -> None:
        if error is not None:
            if not self._starting:
                logger.bind(event="worker_failed", worker=number).error("{}", error)
            elif self.error is None:
                self.error = error
                self._signalled()
                self._signalled()
            return
        logger.bind(event="worker_ready", worker=number, pid=pid).info("ready (pid {})", pid)
        if self._starting:
            self._starting.discard(number)
            if not self._starting:
                listeners = self._config.clients.listeners
                found = entrances(self._config.clients, [(each, each.address.port) for each in listeners])
                self.ready(f"{found}, {self._workers} workers", clients=clients, workers=self._workers)


class _Running:
    """A worker's process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._replies: asyncio.Queue[str | None] = asyncio.Queue()
        """Of configurations: why one was refused; None: it was taken over."""
        self._ended = False
        self._late = 0
        """Replies that nobody waits for any more."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, data: bytes) -> None:
        """Write to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    async def hear(self) -> None:
        """Read its replies until its end, after which it needs no configuration."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if self._late:
                self._late -= 1
            else:
                self._replies.put_nowait(json.loads(line)["refused"])
        self._ended = True
        self._replies.put_nowait(None)

    async def reconfigure(self, config: EdgeConfig) -> None:
        """Let it take over another configuration.

        Raises:
            StartError: it cannot, or does not respond.
        """
        if self._ended:
            return
        self.send(_CONFIGURE + _framed(config))
        try:
            async with asyncio.timeout(REPLY_S):
                refused = await self._replies.get()
        except TimeoutError:
            self._late += 1
            raise StartError(f"the worker with pid {self._process.pid} does not respond within {REPLY_S:g} s") from None
        if refused is not None:
            raise StartError(refused)


def _framed(value: object) -> bytes:
    data = pickle.dumps(value)
    return len(data).to_bytes(_SIZE_BYTES, "big") + data


class Worker(Lifetime):
    """A lifetime that the parent controls: its end, too, is a signal. Signals from elsewhere only stop."""

    def __init__(self) -> None:
        super().__init__()
        self._input = bytearray()
        self._configured: asyncio.Queue[EdgeConfig] = asyncio.Queue()

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
        data = os.read(_STDIN, _READ_BYTES)
        self._input += data
        if not data:
            self._loop.remove_reader(_STDIN)
            self.stop.set()
        while self._input and (taken := self._take()):
            del self._input[:taken]

    def _take(self) -> int:
        """Obey the first message of the parent, if it is whole; return its length, or 0."""
        kind = bytes(self._input[:1])
        if kind != _CONFIGURE:
            self.stop.set()
            if kind == _FORCE:
                self._force.set()
            return 1
        end = 1 + _SIZE_BYTES + int.from_bytes(self._input[1 : 1 + _SIZE_BYTES], "big")
        if len(self._input) < max(end, 1 + _SIZE_BYTES):
            return 0
        self._configured.put_nowait(pickle.loads(self._input[1 + _SIZE_BYTES : end]))  # noqa: S301 -- from our parent
        return end

    async def reconfigure(self, apply: Apply) -> None:
        """Apply the configurations that the parent sends, and reply to each, for ever."""
        while True:
            config = await self._configured.get()
            try:
                await apply(config)
                configure(config.process.log.level, as_json=config.process.log.json)
            except StartError as exc:
                _report(refused=str(exc))
            else:
                _report(refused=None)

    def ready(self, text: str, **ports: object) -> None:
        """Tell the parent that this worker is ready."""
        self._extend_no_more()
        self.was_ready = True
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
    life = Worker()
    following: list[asyncio.Task[None]] = []

    def control(apply: Apply, _: Health) -> Commands:
        following.append(asyncio.get_running_loop().create_task(life.reconfigure(apply), name="reconfigure"))
        life.upgrade_asked = cannot_upgrade
        return {"reload": _leave_to_parent, "upgrade": _cannot_upgrade}

    await serve(config, life, control, None)
    for task in following:
        task.cancel()


async def _cannot_upgrade(_: Request) -> None:
    raise ControlError(NO_UPGRADE)


async def _leave_to_parent(_: Request) -> None:
    """Do nothing: whoever asks for a reload asks the parent, too."""


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
