"""A thousand links to one broker: what they cost it, and how long until all are back after it was restarted.

python -m benchmarks.fleet [--links N] [--rounds N] [--keys]

Providers are whole ones, many in a process, and an edge has a session with each. The broker is killed and started again
at the same ports; the time counts from when it listens. All of it shares the cores of one machine with the broker.
"""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cyclopts

from benchmarks.local import HOST, START_S, BenchmarkError, free_port, raise_descriptor_limit, wait_for_listener
from benchmarks.processes import Processes, folder_of
from goreprox.control.client import ask_all

CROWDS: Final = 20
"""Processes that the providers are in."""
QUIET_S: Final = 10.0
"""How long is looked at a broker that only keeps links alive."""
AWAY_S: Final = 2.0
"""How long the broker is away."""
BACK_S: Final = 120.0
LOOK_S: Final = 0.25


@dataclass(eq=False)
class Crowd:
    """A process with many providers, which tells when all of them are connected."""

    process: subprocess.Popen[str]
    up: bool = False
    up_at: float = 0.0
    """When that was last so for the first time, by the monotonic clock of the system."""

    def follow(self) -> None:
        """Read what it tells until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.up = line == "up\n"
            self.up_at = time.monotonic()


@dataclass
class Fleet:
    """A broker, an edge, and many providers."""

    folder: Path
    broker: Processes
    edge: Processes
    crowds: list[Crowd]
    ports: tuple[int, int]
    keys: bool

    def start_broker(self) -> None:
        """Start the broker, and return once it listens."""
        for_providers, for_edges = self.ports
        self.broker.start(
            *(sys.executable, "-m", "goreprox", "broker", "--providers", f"{HOST}:{for_providers}"),
            *("--edges", f"{HOST}:{for_edges}", "--runtime-dir", str(self.folder), "--log-level", "warning"),
            *(("--state-dir", str(self._state)) if self.keys else ("--insecure",)),
        )
        wait_for_listener(HOST, for_providers, self.broker.check)

    @property
    def _state(self) -> Path:
        return self.folder / "state"

    def join_file(self, role: str, port: int) -> Path:
        """Authorise one, and return the file by which it joins."""
        command = [sys.executable, "-m", "goreprox", "keys", "add", f"{role}-0", "--role", role]
        command += ["--state-dir", str(self._state), "--address", f"{HOST}:{port}"]
        subprocess.run(command, check=True, capture_output=True)
        return self._state / "join" / f"{role}-0.join"

    def all_back(self, links: int) -> tuple[float, float]:
        """Wait until all links are up, and the edge has a session with each provider; return when each was so."""
        give_up = time.monotonic() + BACK_S
        sessions_at = 0.0
        while not sessions_at or not all(crowd.up for crowd in self.crowds):
            if time.monotonic() > give_up:
                raise BenchmarkError(f"{sum(crowd.up for crowd in self.crowds)} of {CROWDS} processes are connected")
            if not sessions_at and self.sessions() >= links:
                sessions_at = time.monotonic()
            time.sleep(LOOK_S)  # what the edge is asked costs it time, too
        return max(crowd.up_at for crowd in self.crowds), sessions_at

    def sessions(self) -> int:
        """Return how many providers the edge has sessions with that flow."""
        replies = ask_all([self.folder], "status", roles=("edge",))
        documents = [reply.result for reply in replies if isinstance(reply.result, dict)]
        return sum(peer["state"] == "up" for document in documents for peer in document["peers"])


@contextlib.contextmanager
def running(*, keys: bool) -> Iterator[Fleet]:
    """Start a broker and an edge, without providers yet."""
    with contextlib.ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gp")))
        folder = stack.enter_context(folder_of(top, "run"))
        raise_descriptor_limit()
        broker, edge = (
            stack.enter_context(Processes(stack.enter_context(folder_of(top, name)))) for name in ("broker", "edge")
        )
        fleet = Fleet(folder, broker, edge, [], (free_port(), free_port()), keys)
        for_edges = fleet.ports[1]
        joins = (
            ("--join-file", str(fleet.join_file("edge", for_edges)))
            if keys
            else ("--broker", f"{HOST}:{for_edges}", "--insecure")
        )
        fleet.start_broker()
        edge.start(
            *(sys.executable, "-m", "goreprox", "edge", "--listen", f"{HOST}:{free_port()}"),
            *("--runtime-dir", str(folder), "--log-level", "warning", *joins),
        )
        _wait_for_edge(fleet)
        yield fleet
        for crowd in fleet.crowds:
            crowd.process.kill()
            crowd.process.wait()


def _wait_for_edge(fleet: Fleet) -> None:
    give_up = time.monotonic() + START_S
    while not list(fleet.folder.glob("edge-*.sock")):
        if time.monotonic() > give_up:
            raise BenchmarkError("the edge does not start")
        time.sleep(LOOK_S)  # nothing to be told by: another program is starting


def join(fleet: Fleet, links: int) -> None:
    """Start providers in `CROWDS` processes."""
    joins = [str(fleet.join_file("provider", fleet.ports[0]))] if fleet.keys else []
    for number in range(CROWDS):
        own = fleet.folder.parent / f"crowd{number}"
        own.mkdir(mode=0o700)
        words = [str(links // CROWDS), str(fleet.ports[0]), "1", str(own), *joins]
        command = [sys.executable, "-m", "benchmarks.crowd", *words]
        crowd = Crowd(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        threading.Thread(target=crowd.follow, name=f"crowd {number}", daemon=True).start()
        fleet.crowds.append(crowd)


def main(*, links: int = 1000, rounds: int = 5, keys: bool = False) -> None:
    """Measure so many links, in multiples of 20."""
    links = links // CROWDS * CROWDS
    with running(keys=keys) as fleet:
        before, edge_before = _memory(fleet.broker), _memory(fleet.edge)
        join(fleet, links)
        fleet.all_back(links)
        time.sleep(AWAY_S)  # the last acknowledgements
        cpu_s = fleet.broker.cpu_s()
        time.sleep(QUIET_S)  # the length of the measurement
        cpu_s = fleet.broker.cpu_s() - cpu_s
        print(
            f"{links} links: {(_memory(fleet.broker) - before) / links / 1024:.1f} KiB a link at the broker,", end=" "
        )
        print(f"{(_memory(fleet.edge) - edge_before) / links / 1024:.1f} KiB a session at the edge;", end=" ")
        print(f"the broker takes {100 * cpu_s / QUIET_S:.1f} % of a core to keep them", flush=True)
        back, sessions, cost, memory = [], [], [], []
        for _ in range(rounds):
            fleet.broker.stop()
            for crowd in fleet.crowds:
                crowd.up = False
            time.sleep(AWAY_S)  # part of the outage
            fleet.start_broker()
            began = time.monotonic()
            up_at, sessions_at = fleet.all_back(links)
            back.append(up_at - began)
            sessions.append(sessions_at - began)
            cost.append(fleet.broker.cpu_s())
            memory.append(_memory(fleet.broker) / 2**20)
        for name, unit, values in (
            ("all links are up after", "s", back),
            ("the edge has all sessions after", "s", sessions),
            ("CPU time of the broker by then", "s", cost),
            ("memory of the broker", "MiB", memory),
        ):
            print(
                f"{name}: {statistics.median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})", flush=True
            )


def _memory(processes: Processes) -> int:
    return sum(processes.memory_bytes().values())


if __name__ == "__main__":
    cyclopts.run(main)
