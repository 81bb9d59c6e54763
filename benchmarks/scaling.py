"""Whether work grows with the wrong thing: what a server does for a client beside many providers, or many streams.

python -m benchmarks.scaling [ROW ...] [--rounds N]

CPU time is that of the server alone, without what it takes in the same time when no client comes. Each client comes
alone: in a busy session it would share messages with the next one, and with many providers there are many sessions.
Beside a listing, it is the client that is timed.
"""

import contextlib
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import cyclopts

from benchmarks import load
from benchmarks.local import HOST, START_S, BenchmarkError, free_port, raise_descriptor_limit, wait_for_listener
from benchmarks.processes import Processes, folder_of
from benchmarks.targets import Targets
from goreprox.control.client import ask_all

CLIENTS: Final = 400
APART_S: Final = 0.05
"""After each client: its last acknowledgement comes 20 ms late (`PATH_ACK_DELAY_S`)."""
QUIET_S: Final = 3.0
"""How long is looked at a server without clients."""
IN_ONE: Final = 250
"""Providers in one process: each has threads of its own."""
STREAMS: Final = (0, 10_000)
PROVIDERS: Final = (1, 100, 1000)
PING_S: Final = 10.0
"""For how long one request after the other is timed."""
LIST_S: Final = 60.0
"""Deadline for a listing."""
MOST_GROWTH: Final = 1.3
MOST_DELAY: Final = 3.0
"""Of the slowest of a hundred requests, which may wait for a page of 100 streams."""


@dataclass
class Run:
    """A server with its providers."""

    port: int
    server: Processes
    folder: Path

    def client_us(self) -> float:
        """Return the CPU time, in microseconds, for a client that comes, asks once and leaves."""
        began, before = time.monotonic(), self.server.cpu_s()
        time.sleep(QUIET_S)  # the length of the measurement
        quiet = (self.server.cpu_s() - before) / (time.monotonic() - began)
        began, before = time.monotonic(), self.server.cpu_s()
        for _ in range(CLIENTS):
            load.first_bytes(self.port, count=1)
            time.sleep(APART_S)  # part of the load
        busy, took_s = self.server.cpu_s() - before, time.monotonic() - began
        return (busy - quiet * took_s) / CLIENTS * 1e6


@contextlib.contextmanager
def running(providers: int) -> Iterator[Run]:
    """Start a server, a target and so many providers."""
    with contextlib.ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = stack.enter_context(folder_of(top, "run"))
        descriptors = raise_descriptor_limit()
        others, server = (
            stack.enter_context(Processes(stack.enter_context(folder_of(top, name)))) for name in ("others", "server")
        )
        target = Targets(others, stack.enter_context(folder_of(top, "targets")), descriptors).web
        clients, links = free_port(), free_port()
        server.start(
            *(sys.executable, "-m", "goreprox", "server", "--listen", f"{HOST}:{clients}"),
            *("--providers", f"{HOST}:{links}", "--max-connections", "12000", "--drain", "0.2", "--insecure"),
            *("--runtime-dir", str(folder), "--log-level", "warning"),
        )
        wait_for_listener(HOST, links, server.check)
        for first in range(0, providers, IN_ONE):
            count = min(IN_ONE, providers - first)
            _crowd(stack, top / f"crowd{first}", count, links, target.port)
        give_up = time.monotonic() + START_S
        while not target.responds(clients):
            if time.monotonic() > give_up:
                raise BenchmarkError("no response of the target through the server")
        yield Run(clients, server, folder)


def _crowd(stack: contextlib.ExitStack, folder: Path, count: int, server_port: int, target_port: int) -> None:
    folder.mkdir(mode=0o700)
    words = [str(count), str(server_port), str(target_port), str(folder)]
    command = [sys.executable, "-m", "benchmarks.crowd", *words]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    if process.stdout.readline() != "up\n":
        raise BenchmarkError("providers ended before they were connected")


def by_providers() -> dict[str, float]:
    """CPU of a server for a client, us, by the number of providers of its service."""
    figures = {}
    for count in PROVIDERS:
        with running(count) as run:
            figures[f"{count:,}"] = run.client_us()
    return figures


def by_streams() -> dict[str, float]:
    """CPU of a server for a client, us, by the number of open idle streams."""
    figures = {}
    with running(10) as run:
        for count in STREAMS:
            socks = load.idle(run.port, count)
            figures[f"{count:,}"] = run.client_us()
            for sock in socks:
                load.hang_up(sock)
    return figures


def status_by_streams() -> dict[str, float]:
    """CPU of a server for its status, us, by the number of open idle streams."""
    figures = {}
    with running(10) as run:
        for count in STREAMS:
            socks = load.idle(run.port, count)
            before = run.server.cpu_s()
            for _ in range(100):
                ask_all([run.folder], "status", roles=("server",))
            figures[f"{count:,}"] = (run.server.cpu_s() - before) / 100 * 1e6
            for sock in socks:
                load.hang_up(sock)
    return figures


def beside_listing() -> dict[str, float]:
    """Time of a request, us, p99, alone and while the open idle streams are listed again and again."""
    with running(10) as run:
        most = STREAMS[-1]
        socks = load.idle(run.port, most)
        alone = load.pings(run.port, count=1 << 20, seconds=PING_S)
        with _listing(run.folder) as listings:
            beside = load.pings(run.port, count=1 << 20, seconds=PING_S)
            told = listings.recv()
        if told <= most:
            raise BenchmarkError(f"a listing had {told} streams, expected {most} and ours")
        for sock in socks:
            load.hang_up(sock)
    return {"alone": load.percentile(alone, 99) * 1000, "beside": load.percentile(beside, 99) * 1000}


@contextlib.contextmanager
def _listing(folder: Path) -> Iterator[Connection]:
    """List the streams of the server in a process of its own; receive how many there were each time."""
    spawning = multiprocessing.get_context("spawn")
    listings, sender = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_list, args=(folder, sender), daemon=True)
    process.start()
    listings.recv()
    try:
        yield listings
    finally:
        process.kill()
        process.join()


def _list(folder: Path, sender: Connection) -> None:
    while True:
        (reply,) = ask_all([folder], "streams", roles=("server",), deadline_s=LIST_S)
        sender.send(sum(len(page["streams"]) for page in reply.pages if isinstance(page, dict)))


@dataclass(frozen=True)
class Row:
    """What is measured, by column."""

    measure: Callable[[], dict[str, float]]
    most_growth: float = MOST_GROWTH
    """From the first to the last column."""


ROWS: Final[dict[str, Row]] = {
    "providers": Row(by_providers),
    "streams": Row(by_streams),
    "status": Row(status_by_streams),
    "listing": Row(beside_listing, MOST_DELAY),
}


def main(*rows: str, rounds: int = 3) -> None:
    """Measure rows, all by default."""
    for name in rows or ROWS:
        row = ROWS[name]
        found = [row.measure() for _ in range(rounds)]
        medians = {key: statistics.median(each[key] for each in found) for key in found[0]}
        first, *_, last = found[0]
        growth = statistics.median(each[last] / each[first] for each in found)
        print(f"{name}: {row.measure.__doc__}")
        print("  ", *(f"{key}: {value:.0f} " for key, value in medians.items()), end="")
        verdict = "holds" if growth <= row.most_growth else "misses"
        print(f" x {growth:.2f} ({verdict}: at most {row.most_growth})", flush=True)


if __name__ == "__main__":
    cyclopts.run(main)
