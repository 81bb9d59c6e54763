"""A worker: an edge whose parent tells it what to do, and when to end or to be upgraded.

Signals from elsewhere only stop it, and SIGHUP and SIGUSR2 do nothing: the parent reloads and upgrades all of them.
"""

import asyncio
import os
import pickle
import sys
from collections import deque
from typing import NoReturn

from loguru import logger

from goreprox.config.roles import EdgeConfig
from goreprox.control.message import Request
from goreprox.control.socket import Commands
from goreprox.errors import GoreproxError
from goreprox.process import handover, running
from goreprox.process.handover import Handover, Inherited
from goreprox.process.lifetime import Lifetime
from goreprox.process.log import configure, say
from goreprox.roles.edge import Apply, serve
from goreprox.roles.health import Health
from goreprox.roles.upgrade import Order, Upgrade, passed
from goreprox.roles.worker_messages import (
    CONFIGURE,
    FORCE,
    READ_BYTES,
    SIZE_BYTES,
    STDIN,
    UPGRADE,
    Job,
    frame_end,
    framed,
    read_frame,
    tell_parent,
)


class Worker(Lifetime):
    """A lifetime that the parent controls: its end, too, is a signal."""

    def __init__(self, unread: bytes) -> None:
        """Obey first what was read before, but not obeyed."""
        super().__init__()
        self._input = bytearray(unread)
        self._orders: deque[tuple[bytes, bytes]] = deque()
        """`CONFIGURE` or `UPGRADE`, and its data."""
        self._ordered = asyncio.Event()

    def __enter__(self) -> "Worker":
        self._loop.add_reader(STDIN, self._readable)
        self._obey()
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._loop.remove_reader(STDIN)

    @property
    def unread(self) -> bytes:
        """What was read of the parent, and not obeyed."""
        return b"".join(kind + framed(data) for kind, data in self._orders) + self._input

    async def order(self) -> tuple[bytes, bytes]:
        """Return the next order, once there is one: `CONFIGURE` or `UPGRADE`, and its data."""
        while not self._orders:
            self._ordered.clear()
            await self._ordered.wait()
        return self._orders.popleft()

    def _signalled(self) -> None:
        self.stop.set()

    def _readable(self) -> None:
        data = os.read(STDIN, READ_BYTES)
        self._input += data
        if not data:
            self._loop.remove_reader(STDIN)
            self.stop.set()
        self._obey()

    def _obey(self) -> None:
        """Obey what was read, but for what comes too late: the code that takes over does."""
        while self._input and not self.replaced and (taken := self._take()):
            del self._input[:taken]

    def _take(self) -> int:
        """Obey the first message of the parent, if it is whole; return its length, or 0."""
        kind = bytes(self._input[:1])
        if kind not in (CONFIGURE, UPGRADE):
            self.stop.set()
            if kind == FORCE:
                self._force.set()
            return 1
        end = frame_end(self._input, 1)
        if end is None:
            return 0
        self._orders.append((kind, bytes(self._input[1 + SIZE_BYTES : end])))
        self._ordered.set()
        return end

    def ready(self, text: str, **ports: object) -> None:
        """Tell the parent that this worker is ready."""
        self._extend_no_more()
        self.was_ready = True
        tell_parent("ready")

    def tell(self, text: str) -> None:
        """Do nothing: the parent talks to the supervisor."""


class _Work:
    """What a worker does, with its present configuration."""

    def __init__(self, config: EdgeConfig) -> None:
        self._config = config

    async def run(self, inherited: Inherited | None) -> Handover | None:
        """Serve as an edge (running.Role)."""
        life = Worker(b"" if inherited is None else passed(inherited).unread)
        obeying: list[asyncio.Task[None]] = []

        def control(apply: Apply, _: Health, upgrade: Upgrade) -> Commands:
            upgrade.unread = lambda: life.unread
            upgrade.told = _upgraded
            life.upgrade_asked = _refuse_signal
            obeying.append(asyncio.get_running_loop().create_task(self._obey(life, apply, upgrade), name="orders"))
            return {"reload": _leave_to_parent, "upgrade": _leave_to_parent}

        following = await serve(self._config, life, control, inherited)
        for task in obeying:
            task.cancel()
        return following

    async def _obey(self, life: Worker, apply: Apply, upgrade: Upgrade) -> None:
        """Carry out the orders of the parent, and reply to each, for ever."""
        while True:
            kind, data = await life.order()
            content = pickle.loads(data)  # noqa: S301 -- from our parent
            try:
                if kind == CONFIGURE:
                    await self._reconfigure(apply, content)
                    tell_parent("done")
                else:
                    await upgrade.prepare(Order(*content))  # the code that takes over replies
            except GoreproxError as exc:
                tell_parent("refused", str(exc))

    async def _reconfigure(self, apply: Apply, config: EdgeConfig) -> None:
        await apply(config)
        configure(config.process.log.level, as_json=config.process.log.json)
        self._config = config


def _upgraded(result: object, problem: str | None) -> None:
    if problem is None:
        tell_parent("done", result)
    else:
        tell_parent("refused", problem)


def _refuse_signal() -> None:
    logger.bind(event="upgrade_failed").warning("SIGUSR2 ignored: a worker is upgraded by its parent")


async def _leave_to_parent(_: Request) -> None:
    """Do nothing: the command that asks a worker asks its parent, too."""


def _end() -> NoReturn:
    """End in place of a start anew: the parent starts another worker."""
    sys.exit(1)


def main() -> int:
    """Run a worker."""
    inherited = handover.inherited()
    data = read_frame() if inherited is None else passed(inherited).job
    if data is None:
        return 0
    job: Job = pickle.loads(data)  # noqa: S301 -- from our parent
    log = job.config.process.log
    configure(log.level, as_json=log.json)
    logger.configure(extra={"worker": job.number})
    try:
        running.run(_Work(job.config).run, inherited, start_anew=_end)
    except GoreproxError as exc:
        if inherited is None:
            tell_parent("error", str(exc))
        else:
            say(f"goreprox: {exc}")
        return exc.exit_code
    return 0
