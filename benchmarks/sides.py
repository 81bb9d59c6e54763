"""What is compared, and how each side is started: no tunnel, one hop, `ssh -R`, and goreprox in its forms.

Every side runs with its defaults, except that limits on the number of connections are raised.
"""

import contextlib
import getpass
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from benchmarks.local import HOST, POLL_S, START_S, BenchmarkError, find, free_port, wait_for_listener
from benchmarks.processes import Processes, folder_of
from benchmarks.relay import Path as Link
from benchmarks.relay import relay
from benchmarks.targets import Target

HAPROXY: Final = """
global
    maxconn {connections}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen tunnel
    bind {host}:{port}
    server target {to[0]}:{to[1]}
"""
SSHD: Final = """
Port {port}
ListenAddress {host}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PidFile none
"""
GOREPROX_CONNECTIONS: Final = 12_000
NATS_SETTINGS: Final = Path(__file__).parents[1] / "deploy/nats/settings.conf"

Address = tuple[str, int]


class Kind(Enum):
    """What a side is to the others."""

    BASE = "base"
    HOP = "hop"
    TUNNEL = "tunnel"
    OURS = "ours"


@dataclass
class Stand:
    """Where a side is started: one port for clients, one target, and perhaps a path between its two halves."""

    processes: Processes
    folder: Path
    descriptors: int
    target: Target
    reach: Callable[[Address, int], Address]
    """Give the address by which an address is reached over the path; the number is the port there, 0: any."""
    port: int = 0
    """Where clients connect. A side without a program of its own sets it."""
    started_s: float = 0.0
    """From the start of the first program to the first response through all of them."""
    providers: int = 1
    """How many providers goreprox has."""

    def over_path(self, address: Address, *, port: int = 0) -> Address:
        """Give the address by which another program reaches `address`."""
        return self.reach(address, port)

    def start(self, *command: str) -> None:
        """Start a program of this side."""
        self.processes.start(find(command[0]) or command[0], *command[1:])

    def wait_for(self, address: Address) -> None:
        """Wait until a program of this side listens at `address`."""
        wait_for_listener(*address, self.processes.check)

    def upgrade(self, role: str) -> subprocess.Popen[str]:
        """Begin to upgrade goreprox's provider or server in place; the command ends when its streams go on."""
        command = [sys.executable, "-m", "goreprox", "upgrade", "--role", role]
        command += ["--runtime-dir", str(self.folder / "run")]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def wait_until_ready(self) -> None:
        """Wait for the first response of the target."""
        began = self.processes.first_start or time.monotonic()
        while not self.target.responds(self.port):
            self.processes.check()
            if time.monotonic() - began > START_S:
                raise BenchmarkError(f"no response through it within {START_S:g} s")
            time.sleep(POLL_S)  # nothing to be told by: other programs are starting
        self.started_s = time.monotonic() - began


@dataclass(frozen=True)
class Side:
    """One side of the comparison."""

    key: str
    title: str
    kind: Kind
    encrypted: bool
    programs: tuple[str, ...]
    """What has to be installed."""
    start: Callable[[Stand], None]
    version: tuple[str, ...] = ()
    """The command that tells it."""
    long_paths: bool = True
    """Whether it is also measured where only the path matters, not the processes."""
    http: bool = False
    """Whether it speaks HTTP, and nothing else."""

    @property
    def missing(self) -> list[str]:
        """What of `programs` is not installed."""
        return [program for program in self.programs if find(program) is None]

    @contextlib.contextmanager
    def running(
        self,
        folder: Path,
        target: Target,
        *,
        descriptors: int,
        path: tuple[float, float] | None = None,
        providers: int = 1,
    ) -> Iterator[tuple[Stand, Link | None]]:
        """Start it in a folder of its own in `folder`, and end it. `path`, as in a Group: over this link.

        Raises:
            BenchmarkError: it does not start.
        """
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(folder_of(folder, self.key))
            links: list[Link] = []

            def reach(address: Address, port: int) -> Address:
                if path is None:
                    return address
                round_trip_s, mbit = path
                links.append(stack.enter_context(relay(address, round_trip_s=round_trip_s, mbit=mbit, listen=port)))
                return HOST, links[-1].port

            processes = stack.enter_context(Processes(own))
            stand = Stand(processes, own, descriptors, target, reach, port=free_port(), providers=providers)
            self.start(stand)
            stand.wait_until_ready()
            yield stand, links[0] if links else None


def direct(stand: Stand) -> None:
    """Start nothing: clients connect to the target."""
    _, stand.port = stand.over_path((HOST, stand.target.port))


def haproxy(stand: Stand) -> None:
    """Start one hop in C. The path is between it and the target."""
    to = stand.over_path((HOST, stand.target.port))
    config = stand.folder / "haproxy.cfg"
    config.write_text(
        HAPROXY.format(connections=min(12_000, stand.descriptors // 2 - 100), host=HOST, port=stand.port, to=to)
    )
    stand.start("haproxy", "-f", str(config))


def ssh(stand: Stand) -> None:
    """Start an sshd of our own, and `ssh -R`."""
    port = free_port()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(stand.folder / name)], check=True)
    (stand.folder / "sshd_config").write_text(SSHD.format(port=port, host=HOST, folder=stand.folder))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd of root insists on it
    stand.start("sshd", "-D", "-f", str(stand.folder / "sshd_config"))
    stand.wait_for((HOST, port))
    host, port = stand.over_path((HOST, port))
    options = ["StrictHostKeyChecking=no", f"UserKnownHostsFile={stand.folder}/known", "ExitOnForwardFailure=yes"]
    flags = [flag for option in (*options, "LogLevel=ERROR") for flag in ("-o", option)]
    forward = f"{HOST}:{stand.port}:{HOST}:{stand.target.port}"
    flags += ["-F", "none", "-i", str(stand.folder / "user"), "-p", str(port), "-N", "-R", forward]
    stand.start("ssh", *flags, f"{getpass.getuser()}@{host}")


def bare(stand: Stand) -> None:
    """Start the bare relay."""
    link = free_port()
    stand.start(sys.executable, "-m", "benchmarks.bare", "server", str(stand.port), str(link))
    stand.start(sys.executable, "-m", "benchmarks.bare", "provider", str(stand.target.port), str(link))


def _goreprox(stand: Stand, role: str, *arguments: str, end: bool = True) -> None:
    common = ["--runtime-dir", str(stand.folder / "run"), "--log-level", "warning"]
    if end:
        common += ["--max-connections", str(GOREPROX_CONNECTIONS), "--drain", "0.2"]
    stand.start(sys.executable, "-m", "goreprox", role, *arguments, *common)


def _key(stand: Stand, role: str, address: Address) -> list[str]:
    """Authorise one, and give the options by which it joins."""
    state = stand.folder / "state"
    command = [sys.executable, "-m", "goreprox", "keys", "add", f"{role}-0", "--role", role]
    command += ["--state-dir", str(state), "--address", f"{address[0]}:{address[1]}"]
    subprocess.run(command, check=True, capture_output=True)
    return ["--join-file", str(state / "join" / f"{role}-0.join")]


def goreprox(stand: Stand, *, keys: bool, http: bool = False, more: tuple[str, ...] = ()) -> None:
    """Start server, with `more` options, and provider."""
    at = (HOST, free_port())
    to = stand.over_path(at)
    join, trust = ["--server", f"{to[0]}:{to[1]}", "--insecure"], ["--insecure"]
    if keys:
        join, trust = _key(stand, "provider", to), ["--state-dir", str(stand.folder / "state")]
    listen = f"{'http' if http else 'tcp'}://{HOST}:{stand.port}"
    _goreprox(stand, "server", "--listen", listen, "--providers", f"{at[0]}:{at[1]}", "--no-access-log", *trust, *more)
    for _ in range(stand.providers):
        _goreprox(stand, "provider", f"{HOST}:{stand.target.port}", *join)


def goreprox_edge(stand: Stand, *, keys: bool) -> None:
    """Start edge, broker and provider. The path is between the latter two."""
    edges, providers = (HOST, free_port()), (HOST, free_port())
    to = stand.over_path(providers)
    join_edge, trust = ["--broker", f"{edges[0]}:{edges[1]}", "--insecure"], ["--insecure"]
    join = ["--server", f"{to[0]}:{to[1]}", "--insecure"]
    if keys:
        join_edge, join = _key(stand, "edge", edges), _key(stand, "provider", to)
        trust = ["--state-dir", str(stand.folder / "state")]
    ports = ["--edges", f"{edges[0]}:{edges[1]}", "--providers", f"{providers[0]}:{providers[1]}"]
    _goreprox(stand, "broker", *ports, *trust, end=False)
    _goreprox(stand, "edge", "--listen", f"{HOST}:{stand.port}", *join_edge)
    _goreprox(stand, "provider", f"{HOST}:{stand.target.port}", *join)


def goreprox_nats(stand: Stand) -> None:
    """Start a NATS server, with the settings that are shipped, edge and provider. The path is before the latter."""
    at = (HOST, free_port())
    config = stand.folder / "nats.conf"
    config.write_text(f'include "./settings.conf"\nlisten: "{at[0]}:{at[1]}"\n')
    (stand.folder / "settings.conf").write_text(NATS_SETTINGS.read_text())
    to = stand.over_path(at)
    stand.start("nats-server", "-c", str(config))
    _goreprox(stand, "edge", "--listen", f"{HOST}:{stand.port}", "--broker", f"nats://{at[0]}:{at[1]}", "--insecure")
    _goreprox(stand, "provider", f"{HOST}:{stand.target.port}", "--server", f"nats://{to[0]}:{to[1]}", "--insecure")


_PYTHON: Final = (sys.executable,)
BASES: Final = (
    Side("direct", "direct", Kind.BASE, False, ("nginx",), direct, ("nginx", "-v")),
    Side("haproxy", "HAProxy, one hop", Kind.HOP, False, ("haproxy",), haproxy, ("haproxy", "-v")),
    Side("bare", "bare relay", Kind.HOP, False, _PYTHON, bare, long_paths=False),
    Side("ssh", "ssh -R", Kind.TUNNEL, True, ("ssh", "sshd", "ssh-keygen"), ssh, ("ssh", "-V")),
)
OURS: Final = (
    Side("goreprox", "goreprox, plain", Kind.OURS, False, _PYTHON, lambda stand: goreprox(stand, keys=False)),
    Side("goreprox-keys", "goreprox, keys", Kind.OURS, True, _PYTHON, lambda stand: goreprox(stand, keys=True)),
    Side(
        "goreprox-http",
        "goreprox, http://, plain",
        Kind.OURS,
        False,
        _PYTHON,
        lambda stand: goreprox(stand, keys=False, http=True),
        long_paths=False,
        http=True,
    ),
    Side(
        "goreprox-inspect",
        "goreprox, http:// with --inspect, plain",
        Kind.OURS,
        False,
        _PYTHON,
        lambda stand: goreprox(stand, keys=False, http=True, more=("--inspect",)),
        long_paths=False,
        http=True,
    ),
    Side(
        "goreprox-edge",
        "goreprox, edge + broker, plain",
        Kind.OURS,
        False,
        _PYTHON,
        lambda stand: goreprox_edge(stand, keys=False),
        long_paths=False,
    ),
    Side(
        "goreprox-edge-keys",
        "goreprox, edge + broker, keys",
        Kind.OURS,
        True,
        _PYTHON,
        lambda stand: goreprox_edge(stand, keys=True),
        long_paths=False,
    ),
    Side(
        "goreprox-nats",
        "goreprox, edge + NATS server, plain",
        Kind.OURS,
        False,
        ("nats-server",),
        goreprox_nats,
        ("nats-server", "--version"),
        long_paths=False,
    ),
)
