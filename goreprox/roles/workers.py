"""Several edge processes on the same ports, under a parent that restarts a crashed one and passes signals on.

The parent carries no traffic. A worker reads from it what to do, and the end of file when it ends, however it does.
(Signals themselves would reach a worker twice where a supervisor sends them to all processes of a service.) It has a
lock and an incarnation of its own, so that the successor of a killed one proves its death.

In an upgrade the parent goes first, and keeps the process ids and the pipes of its workers. Then it has one after the
other replaced, which upgrades itself as an edge does.

Not by `multiprocessing`, because its spawn method keeps another process (the resource tracker), imports the main module
again in each worker, and starts workers in the parent's process group, whose signals they must not get.
"""

import asyncio
import contextlib
import dataclasses
import pickle
import secrets
from collections.abc import Iterator
from typing import Final

from loguru import logger

from goreprox.config.reloads import Configuration
from goreprox.config.roles import EdgeConfig
from goreprox.control.client import PARENT
from goreprox.control.socket import serving
from goreprox.errors import ControlError, StartError
from goreprox.monitor.health import Report, ask_ready
from goreprox.process.handover import PREFLIGHT_S, Handover, Inherited
from goreprox.process.instance import INCARNATION_BYTES, Instance
from goreprox.process.lifetime import Lifetime
from goreprox.protocol.fields import Fields
from goreprox.roles.dashboard import Dashboard
from goreprox.roles.entrances import entrances
from goreprox.roles.health import Health, check_moved
from goreprox.roles.preflight import problems
from goreprox.roles.reload import Reload
from goreprox.roles.upgrade import RESUME_S, Before, Moved, Upgrade
from goreprox.roles.worker_messages import CONFIGURE, FORCE, STOP, UPGRADE, Job, framed
from goreprox.roles.worker_process import Handed, WorkerProcess, command

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
STABLE_S = 10.0
"""After a worker has lived this long, the backoff begins anew."""
REPLY_S: Final = 10.0
"""How long a worker may take to take over a configuration."""


async def run(configuration: Configuration[EdgeConfig], inherited: Inherited | None = None) -> Handover | None:
    """Run an edge's workers until a signal has ended them all, or other code is to take over.

    Raises:
        StartError: one of them cannot start; the others were ended.
        ExportError: what was inherited is not the state of a parent.
    """
    config = configuration.current
    process, parent = config.process, Parent(config)
    before = None if inherited is None else Before.read(inherited)
    if before is None:
        incarnation = secrets.token_bytes(INCARNATION_BYTES)
        instance = Instance.acquire(process.lock_dir, PARENT, process.own_name, incarnation)
    else:
        instance = before.instance(process, PARENT)
        parent.restore(before.items, trial=before.inherited.trial)
        if before.inherited.trial:
            check_moved(process.health, before.health)
            for problem in problems(config):
                raise problem
            return None
    health = Health(process.health, parent.report, None if before is None else before.health)
    reload = Reload(configuration, parent, health, apply=parent.reconfigure)
    upgrade = Upgrade(parent, parent, instance, health)
    parent.upgrade_asked = upgrade.signalled
    if before is not None:
        upgrade.took_over(before)
    async with health, Dashboard(process), serving(instance, {**reload.commands, **upgrade.commands}):
        with parent:
            parent.begin(f"starting {config.workers} workers, which connect to {', '.join(map(str, config.brokers))}")
            async with asyncio.TaskGroup() as group:
                for number in range(config.workers):
                    group.create_task(parent.keep(number), name=f"worker {number}")
        if parent.error is None:
            return upgrade.handover()
    raise StartError(parent.error)


class Parent(Lifetime):
    """Keeps one process running for each job, until it is to stop."""

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__()
        self._config = _for_workers(config)
        self._workers = config.workers
        self.error: str | None = None
        """Why a worker could not start."""
        self._processes: dict[int, WorkerProcess] = {}
        self._starting = set(range(config.workers))
        """Workers that have never been ready."""

    def begin(self, text: str) -> None:
        """Wait for workers that have never been ready, unless there are none after an upgrade."""
        if self._starting:
            self.wait_for_ready(text)
        else:
            self._all_ready()

    async def reconfigure(self, config: EdgeConfig) -> None:
        """Let all workers take over another configuration, or none of them.

        Raises:
            StartError: one of them cannot.
        """
        if self.stop.is_set() or self._starting:
            raise StartError("it is starting or shutting down")
        for number, worker in self._processes.items():
            if not worker.is_current:
                raise StartError(
                    f"worker {number} runs the code before the upgrade; wait for its end, or upgrade again"
                )
        before, after, told = self._config, _for_workers(config), list[WorkerProcess]()
        try:
            while untold := [worker for worker in self._processes.values() if worker not in told]:
                told.append(untold[0])
                await _configure(untold[0], after)
        except StartError:
            for worker in told[:-1]:
                with contextlib.suppress(StartError):
                    await _configure(worker, before)
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
        running = [worker.pid for worker in self._processes.values() if not worker.is_upgrading]
        silent = Report("no worker runs, or one of them does not respond", [])
        found = [reports.get(pid, silent) for pid in running] or [silent]
        reason = next((report.reason for report in found if report.reason is not None), None)
        return Report(reason, sorted({service for report in found for service in report.missing}))

    def _signalled(self) -> None:
        super()._signalled()
        for worker in self._processes.values():
            worker.send(FORCE if self.forced else STOP)

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
        """Run a worker to its end, or be it that of this code; return how it ended."""
        if number not in self._processes:
            try:
                handed = WorkerProcess.start(number)
            except OSError as exc:
                return f"cannot be started: {exc.strerror}"
            worker = self._adopt(handed)
            worker.send(framed(pickle.dumps(Job(self._config, number))))
        worker = self._processes[number]
        await worker.ended.wait()
        if self.replaced:
            return ""
        del self._processes[number]
        return f"ended with code {worker.reap()} (pid {worker.pid})"

    def _adopt(self, handed: Handed) -> WorkerProcess:
        worker = WorkerProcess(handed, ready=self._ready, failed=self._failed)
        self._processes[worker.number] = worker
        return worker

    def _ready(self, worker: WorkerProcess) -> None:
        logger.bind(event="worker_ready", worker=worker.number, pid=worker.pid).info("ready (pid {})", worker.pid)
        if self._starting:
            self._starting.discard(worker.number)
            if not self._starting:
                self._all_ready()

    def _all_ready(self) -> None:
        ports = [(each, each.address.port) for each in self._config.clients.listeners]
        text = f"{entrances(self._config.clients, ports)}, {self._workers} workers"
        self.ready(text, clients=list(dict.fromkeys(port for _, port in ports)), workers=self._workers)

    def _failed(self, worker: WorkerProcess, error: str) -> None:
        if not self._starting:
            logger.bind(event="worker_failed", worker=worker.number).error("{}", error)
        elif self.error is None:
            self.error = error
            self._signalled()
            self._signalled()

    # Upgrade (upgrade.Portable).

    @property
    def connections(self) -> int:
        """None: the workers have them."""
        return 0

    async def end_what_stays(self) -> None:
        """Do nothing: each worker does, once it is upgraded."""

    def replace(self) -> None:
        """Leave the workers to the code that takes over."""
        super().replace()
        for worker in self._processes.values():
            worker.release()

    def leave(self) -> list[int]:
        """Return the pipes, which `replace` has left."""
        return [descriptor for worker in self._processes.values() for descriptor in worker.descriptors]

    def export(self, *, payload: bool) -> Iterator[object]:
        """Yield all that is known of the workers."""
        yield {
            "workers": self._workers,
            "starting": list(self._starting),
            "processes": [worker.export() for worker in self._processes.values()],
        }

    def restore(self, items: Iterator[object], *, trial: bool) -> None:
        """Go on with the workers that `export` has yielded; of a `trial` only look at them.

        Raises:
            ExportError: it is something else.
            StartError: the number of workers has changed.
        """
        head = Fields(next(items, None))
        if (workers := head.count("workers")) != self._workers:
            raise StartError(f"--workers was {workers} so far, and cannot change in an upgrade; restart it for that")
        self._starting = {number for number in range(workers) if number in head.items("starting")}
        processes = [Handed.read(Fields(item)) for item in head.items("processes")]
        if not trial:
            for handed in processes:
                self._adopt(handed)

    async def resumed(self) -> Moved:
        """Upgrade the workers that the code before has started, one after the other.

        Raises:
            ControlError: some of them could not be upgraded.
        """
        workers = list(self._processes.values())
        for worker in workers:
            worker.is_current = False
        moved, failures = list[Moved](), list[str]()
        for worker in workers:
            try:
                moved.append(await self._upgrade(worker))
            except StartError as exc:
                failures.append(f"worker {worker.number}: {exc}")
        if failures:
            raise ControlError(f"of {len(workers)} workers {len(moved)} were upgraded; {'; '.join(failures)}")
        return Moved(sum(each.connections for each in moved), max((each.paused_s for each in moved), default=0.0))

    async def _upgrade(self, worker: WorkerProcess) -> Moved:
        worker.is_upgrading = True
        order = (command(), pickle.dumps(Job(self._config, worker.number)))
        deadline_s = PREFLIGHT_S + 2 * self._config.connections.drain_s + RESUME_S + REPLY_S
        try:
            result = await worker.order(UPGRADE, pickle.dumps(order), deadline_s=deadline_s)
        finally:
            worker.is_upgrading = False
        match result:
            case {"connections": int(connections), "paused_s": int() | float() as paused_s}:
                worker.is_current = True
                return Moved(connections, paused_s)
        raise StartError("it has ended, and another one is started; its connections were reset")


def _for_workers(config: EdgeConfig) -> EdgeConfig:
    clients = dataclasses.replace(config.clients, reuse_port=True)
    process = dataclasses.replace(config.process, health=None, dashboard=None)  # the parent's
    return dataclasses.replace(config, workers=1, clients=clients, process=process)


async def _configure(worker: WorkerProcess, config: EdgeConfig) -> None:
    await worker.order(CONFIGURE, pickle.dumps(config), deadline_s=REPLY_S)
