"""What is measured together, while one side runs in one place: each group starts every side anew."""

import contextlib
import functools
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import load
from benchmarks.local import BenchmarkError
from benchmarks.relay import Path as Link
from benchmarks.rows import CROWD_MBIT, CROWD_ROUND_TRIP_S, LONG_MBIT, ROUND_TRIP_S
from benchmarks.sides import Kind, Side, Stand
from benchmarks.targets import Targets

UPGRADABLE: Final = ("goreprox", "goreprox-keys")
_UPGRADED: Final = {"provider": "upgrade", "server": "upgrade_server"}
"""Roles, and the rows of their upgrades."""


@dataclass(frozen=True)
class Settings:
    """How long and how much. Seconds, unless the name says otherwise."""

    wrk: int = 2
    bulk: float = 2.0
    warm_up: float = 0.5
    ping_count: int = 2000
    pings: float = 2.0
    first_byte_count: int = 20
    long_warm_up: float = 1.0
    long: float = 3.0
    crowd: float = 4.0
    outages: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0) * 3
    idle_count: int = 10_000
    upgrades: int = 40
    upgrades_beside_idle: int = 10


QUICK: Final = Settings(
    wrk=1,
    bulk=0.5,
    warm_up=0.2,
    ping_count=300,
    pings=0.5,
    first_byte_count=4,
    long_warm_up=1.0,
    long=1.0,
    crowd=1.0,
    outages=(0.0, 0.3),
    idle_count=1000,
    upgrades=5,
    upgrades_beside_idle=2,
)


@dataclass
class Run:
    """One side running for one group, and its results."""

    side: Side
    stand: Stand
    settings: Settings
    link: Link | None
    values: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self.stand.port

    def requests(self, row: str, connections: int, *, close: bool = False) -> load.Requests:
        """Measure a row of requests/s."""
        done = load.requests(self.port, connections=connections, seconds=self.settings.wrk, close=close)
        self.values[row] = done.per_s
        if done.errors:
            self.notes.append(f"{row}: {done.errors}")
        return done

    def downloads(self, row: str, streams: int) -> float:
        """Measure a row of MB/s, and return the bytes."""
        count, seconds = load.download(
            self.port, streams=streams, warm_up_s=self.settings.warm_up, seconds=self.settings.bulk
        )
        self.values[row] = count / 1e6 / seconds
        return count


@dataclass(frozen=True)
class Group:
    """Rows that are measured while one side runs in one place."""

    key: str
    measure: Callable[[Run], None]
    estimate_s: Callable[[Settings], float]
    """How long it takes, a start not included."""
    echo: bool = False
    """The target is the echo, not nginx."""
    path: tuple[float, float] | None = None
    """Round trip in s and rate in Mbit/s (0: no limit) of the path between a side's halves."""
    providers: int = 1
    only: Callable[[Side], bool] = lambda _: True
    rows: tuple[str, ...] = ()


def _web(run: Run) -> None:
    settings, cpu = run.settings, run.stand.processes.cpu_s
    run.values["ready"] = run.stand.started_s
    times = load.pings(run.port, count=settings.ping_count, seconds=settings.pings)
    run.values["ping_p50"], run.values["ping_p99"] = load.percentile(times, 50), load.percentile(times, 99)
    before = cpu()
    done = run.requests("requests_32", 32)
    if run.side.kind is not Kind.BASE:
        run.values["cpu_requests"] = (cpu() - before) / done.count * 100_000
    run.requests("requests_256", 256)
    run.requests("connections", 64, close=True)


def _bulk(run: Run) -> None:
    before, began = run.stand.processes.cpu_s(), time.perf_counter()
    count = run.downloads("down", 1)
    if run.side.kind is not Kind.BASE:
        # The CPU time includes the warm-up, the bytes do not: take its share away.
        share = run.settings.bulk / (time.perf_counter() - began)
        run.values["cpu_gib"] = (run.stand.processes.cpu_s() - before) * share / (count / (1 << 30))
    run.downloads("down_8", 8)


def _up(run: Run) -> None:
    count, seconds = load.upload(run.port, warm_up_s=run.settings.warm_up, seconds=run.settings.bulk)
    run.values["up"] = count / 1e6 / seconds


def _long(run: Run) -> None:
    times = load.first_bytes(run.port, count=run.settings.first_byte_count)
    run.values["first_byte"] = load.percentile(times, 50) / 1000 / ROUND_TRIP_S
    count, seconds = load.download(run.port, streams=1, warm_up_s=run.settings.long_warm_up, seconds=run.settings.long)
    run.values["stream"] = count / 1e6 / seconds


def _crowd(run: Run) -> None:
    seconds = run.settings.crowd
    quiet = load.pings(run.port, count=1 << 20, seconds=seconds / 2)
    run.values["quiet_p99"] = load.percentile(quiet, 99)
    stopped, bulk = load.large(run.port), load.large(run.port)
    over = threading.Event()

    def read() -> None:
        buffer = bytearray(1 << 16)
        with contextlib.suppress(OSError):
            while not over.is_set() and bulk.recv_into(buffer):
                pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        time.sleep(seconds / 4)  # until queues and windows are as full as they get
        run.values["crowd_p99"] = load.percentile(load.pings(run.port, count=1 << 20, seconds=seconds), 99)
        if not reader.is_alive():
            raise BenchmarkError("the bulk stream ended")
    finally:
        over.set()
        reader.join(load.TIMEOUT_S)
        load.hang_up(bulk)
        load.hang_up(stopped)


def _cut(run: Run) -> None:
    assert run.link is not None
    with load.connect(run.port) as sock:
        sock.sendall(b"E!")
        if sock.recv(1) != b"!":
            raise BenchmarkError("the echo does not respond")
        stalls: list[float] = []
        for outage_s in run.settings.outages:
            stall = load.stall(sock, run.link.cut(outage_s))
            if stall is None:
                run.notes.append("stall: the connection was lost with the first cut")
                return
            stalls.append(stall)  # the response came over the new link, so the next cut finds it whole
    run.values["stall"] = max(stalls)


def idle_streams(settings: Settings, descriptors: int, *, for_each: int = 2) -> int:
    """Return the number of idle streams, when a process needs so many descriptors for each: some tunnels need two."""
    return min(settings.idle_count, descriptors // for_each - 500)


def _idle(run: Run) -> None:
    run.requests("alone", 32)
    before = run.stand.processes.memory_bytes()
    count = idle_streams(run.settings, run.stand.descriptors)
    socks = load.idle(run.port, count)
    try:
        if run.side.kind is not Kind.BASE:
            after = run.stand.processes.memory_bytes()
            grown = [after[pid] - before.get(pid, 0) for pid in after]
            run.values["memory"] = max(grown) / count / 1024
        run.requests("beside", 32)
    finally:
        for sock in socks:
            load.hang_up(sock)


def _upgrade(run: Run) -> None:
    for role, row in _UPGRADED.items():
        run.values[row] = _stall_p99(run, role, run.settings.upgrades)


def _stall_p99(run: Run, role: str, upgrades: int) -> float:
    stalls = [load.stall_of(run.port, functools.partial(run.stand.upgrade, role)) for _ in range(upgrades)]
    return load.percentile(stalls, 99)


def _upgrade_idle(run: Run) -> None:
    socks = load.idle(run.port, idle_streams(run.settings, run.stand.descriptors, for_each=1))
    try:
        for role, row in _UPGRADED.items():
            run.values[f"{row}_idle"] = _stall_p99(run, role, run.settings.upgrades_beside_idle)
        for sock in socks:
            load.ask(sock)  # none of them was lost
    finally:
        for sock in socks:
            load.hang_up(sock)


def _providers(count: int) -> Group:
    def measure(run: Run) -> None:
        run.requests(f"providers_{count}", 64)

    return Group(
        f"providers-{count}",
        measure,
        lambda settings: settings.wrk,
        providers=count,
        only=lambda side: side.key == "goreprox",
        rows=(f"providers_{count}",),
    )


GROUPS: Final = (
    Group(
        "web",
        _web,
        lambda settings: 3 * settings.wrk + settings.pings / 2,
        rows=("requests_32", "requests_256", "connections", "ping_p50", "ping_p99", "cpu_requests", "ready"),
    ),
    Group(
        "bulk",
        _bulk,
        lambda settings: 2 * (settings.bulk + settings.warm_up),
        rows=("down", "down_8", "cpu_gib"),
    ),
    Group(
        "up",
        _up,
        lambda settings: settings.bulk + settings.warm_up,
        echo=True,
        only=lambda side: not side.http,
        rows=("up",),
    ),
    Group(
        "long",
        _long,
        lambda settings: settings.long + settings.long_warm_up + settings.first_byte_count * 2 * ROUND_TRIP_S,
        path=(ROUND_TRIP_S, LONG_MBIT),
        only=lambda side: side.long_paths,
        rows=("first_byte", "stream"),
    ),
    Group(
        "crowd",
        _crowd,
        lambda settings: 1.8 * settings.crowd,
        path=(CROWD_ROUND_TRIP_S, CROWD_MBIT),
        only=lambda side: side.long_paths,
        rows=("quiet_p99", "crowd_p99"),
    ),
    Group(
        "cut",
        _cut,
        lambda settings: sum(settings.outages) + 0.2 * len(settings.outages),
        echo=True,
        path=(0.0, 0.0),
        only=lambda side: side.long_paths,
        rows=("stall",),
    ),
    Group(
        "idle",
        _idle,
        lambda settings: 2 * settings.wrk + settings.idle_count / 1000,
        only=lambda side: side.long_paths,
        rows=("memory", "alone", "beside"),
    ),
    Group(
        "upgrade",
        _upgrade,
        lambda settings: 3 * settings.upgrades,
        only=lambda side: side.key in UPGRADABLE,
        rows=("upgrade", "upgrade_server"),
    ),
    Group(
        "upgrade-idle",
        _upgrade_idle,
        lambda settings: settings.idle_count / 500 + 8 * settings.upgrades_beside_idle,
        only=lambda side: side.key in UPGRADABLE,
        rows=("upgrade_idle", "upgrade_server_idle"),
    ),
    *map(_providers, (1, 2, 4, 8)),
)


def measure(
    group: Group, side: Side, *, targets: Targets, settings: Settings, folder: Path, descriptors: int
) -> tuple[dict[str, float], list[str]]:
    """Start `side`, measure the rows of `group`, end it. Return figures by row, and notes.

    A side that fails has no figures for the rest; the notes say why.
    """
    target = targets.echo if group.echo else targets.web
    values: dict[str, float] = {}
    notes: list[str] = []
    try:
        with side.running(folder, target, descriptors=descriptors, path=group.path, providers=group.providers) as (
            stand,
            link,
        ):
            group.measure(Run(side, stand, settings, link, values, notes))
    except (BenchmarkError, OSError, subprocess.SubprocessError) as exc:
        notes.append(f"{group.key}: failed: {exc}")
    return values, notes
