"""Roles that can be upgraded in place, and the command that does it."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypedDict, Unpack

from tests.support.forks import run_command
from tests.support.processes import WAIT_S, Process, Tunnel, logging_to
from tests.support.relay import Relay
from tests.support.servers import Handler
from tests.support.sockets import HOST
from tests.support.traffic import echo
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
REFUSED: Final = """
import importlib, os, sys

def refuse(step):
    module, path, nth = step.split()
    *names, name = path.split(".")
    owner = importlib.import_module(module)
    for each in names:
        owner = getattr(owner, each)
    function = getattr(owner, name)
    at, calls = None, 0

    def refused(*args, **options):
        nonlocal at, calls
        if at != os.readlink({where!r}):
            at, calls = os.readlink({where!r}), 0
        calls += 1
        if at == step and calls == int(nth):
            raise MemoryError
        return function(*args, **options)

    setattr(owner, name, refused)

if "_GOREPROX_HANDOVER" not in os.environ:
    for step in {steps!r}:
        refuse(step)
from goreprox.cli.main import main
sys.exit(main())
"""


class Refusal:
    """Where memory is refused to a process: a step is a module, a function in it, the number of the call."""

    def __init__(self, tmp: Path, *steps: str) -> None:
        self.steps = steps
        self._where = tmp / "refused at"
        self.program = ("-c", REFUSED.format(where=str(self._where), steps=steps))
        self.over()

    def at(self, step: str) -> None:
        """Refuse it at this step alone, and count calls anew."""
        self._where.unlink(missing_ok=True)
        self._where.symlink_to(step)

    def over(self) -> None:
        """Refuse it nowhere."""
        self.at("nowhere")


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


BASIC: Final = ("--listen", f"tcp://{HOST}:0", "--listen", f"http://{HOST}:0=web")


class Upgradable(Tunnel):
    """A tunnel in which the `process` of one role can be upgraded; `other` is its peer, and `web` a port for HTTP."""

    role: str
    entrance: Process
    """The server or the edge: what accepts clients."""
    web: int
    target_of_web: int

    @property
    def process(self) -> Process:
        return self.provider if self.role == "provider" else self.entrance

    @property
    def other(self) -> Process:
        return self.entrance if self.role == "provider" else self.provider

    async def serve_at(self, role: str, *options: str, **how: Unpack[Start]) -> None:
        """Start a server, or a broker and an edge."""
        self.role = role
        if role == "edge":
            broker = await self.start("broker", "--providers", f"{HOST}:0", "--edges", f"{HOST}:0")
            providers = await broker.port("providers")
            where = ("--broker", f"{HOST}:{await broker.port('edges')}")
            self.entrance = await start(self, "edge", *options, *where, **how)
        else:
            server = ("server", *options, "--providers", f"{HOST}:0")
            self.entrance = await (start(self, *server, **how) if role == "server" else self.start(*server))
            providers = await self.entrance.port("providers")
        ports = (await self.entrance.ready())["clients"]
        assert isinstance(ports, list)
        self.port, self.web = ports[0], ports[-1]
        self.relay = Relay(providers)
        await self.relay.start()
        self._stack.push_async_callback(self.relay.stop)

    async def provide_both(self, **how: Unpack[Start]) -> None:
        """Start a provider of both targets."""
        provider = self._provider()
        self.provider = await (start(self, *provider, **how) if self.role == "provider" else self.start(*provider))
        await eventually(lambda: self.provider.events("peer_up"), "the provider knows the edge")
        await eventually(lambda: self.entrance.events("peer_up"), "the edge knows the provider")

    async def start_again(self) -> None:
        """Start what takes the place of the process, which has ended; it cannot be upgraded."""
        if self.role == "provider":
            self.provider = await self.start(*self._provider())
        else:
            listen = ("--listen", f"tcp://{HOST}:{self.port}", "--listen", f"http://{HOST}:{self.web}=web")
            self.entrance = await self.start("server", *listen, "--providers", f"{HOST}:{self.relay.target}")

    async def start_another(self) -> None:
        """Start another process of the same role and name, beside the process."""
        if self.role == "provider":
            another = await self.start(*self._provider())
            await another.logged("peer_up")
        else:
            await self.start("server", *BASIC, "--providers", f"{HOST}:0")

    def _provider(self) -> tuple[str, ...]:
        targets = (f"{HOST}:{self.target_port}", f"web={HOST}:{self.target_of_web}")
        return ("provider", *targets, "--server", f"{HOST}:{self.relay.port}")

    async def upgraded(self) -> None:
        """Upgrade the process by a signal."""
        before = self.process.events("upgraded")
        self.process.signal(signal.SIGUSR2)
        await eventually(lambda: self.process.events("upgraded") > before, "it was upgraded")


@asynccontextmanager
async def upgradable(
    tmp: Path, role: str, handler: Handler, *options: str, web: Handler = echo, **how: Unpack[Start]
) -> AsyncIterator[Upgradable]:
    """A tunnel, of which the server or edge has these options."""
    made = Upgradable(tmp)
    async with made._stack:
        made.target_of_web = await made.target(web)
        await made.target(handler)
        await made.serve_at(role, *(options or BASIC), **how)
        await made.provide_both(**how)
        yield made


GATED = """
import importlib, os, sys

def gate(fifo, module, path):
    *names, name = path.split(".")
    owner = importlib.import_module(module)
    for each in names:
        owner = getattr(owner, each)
    function = getattr(owner, name)

    def gated(*args, **options):
        with open(fifo) as file:
            file.read()
        return function(*args, **options)

    setattr(owner, name, gated)

for fifo, step in {steps!r}:
    kind, *names = step.split()
    if (kind == "trial") == os.environ.get("_GOREPROX_HANDOVER", "").startswith("trial"):
        gate(fifo, *names)
from goreprox.cli.main import main
sys.exit(main())
"""


def gated(*gates: "Gate") -> tuple[str, str]:
    """Return the program of a process that waits at each of these."""
    return "-c", GATED.format(steps=[gate.step for gate in gates])


class Gate:
    """Where a process waits at a step, of the code before an upgrade (real) or of the check of the next one (trial)."""

    def __init__(self, tmp: Path, step: str) -> None:
        self._path = tmp / f"gate {step}"
        os.mkfifo(self._path)
        self.step = str(self._path), step
        self.program = gated(self)
        """Of a process that waits there."""
        self._open: int | None = None

    def _is_reached(self) -> bool:
        try:
            self._open = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            return False  # nobody has opened it for reading
        return True

    async def reached(self) -> None:
        """Wait for the process, of which some steps are two interpreters away, and let it wait."""
        await eventually(self._is_reached, "the step is reached", deadline_s=WAIT_S)

    def open(self) -> None:
        """Let the process go on, through whatever gates may follow."""
        assert self._open is not None
        os.close(self._open)
        self._open = None
