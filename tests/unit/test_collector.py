"""What the page is made of: the last hour, what has happened, and lists of streams."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from goreprox.control.message import Request
from goreprox.control.socket import Commands, ControlSocket
from goreprox.monitor import collector as module
from goreprox.monitor import streams as streams_module
from goreprox.monitor.collector import Collector
from goreprox.monitor.history import EVERY_S, KEPT, KEPT_S, PROCESSES, History
from goreprox.monitor.processes import Processes
from goreprox.monitor.streams import Streams
from goreprox.status.document import Document
from tests.support.waiting import eventually


def document(incarnation: str = "1", *, sent: int = 0, received: int = 0, connections: int = 0) -> Document:
    streams = {"open": connections, "sent_bytes": sent, "received_bytes": received}
    return cast("Document", {"format": 1, "incarnation": incarnation, "streams": streams})


def test_the_last_hour_has_a_sample_every_few_seconds_and_no_more() -> None:
    history = History()
    for second in range(int(KEPT_S) + 100):
        history.add(1e9 + second, float(second + 1), {"server-a.0": document(sent=100 * second, connections=second)})
    (samples,) = history.all().values()
    assert len(samples) == KEPT
    assert {round(after.at - before.at) for before, after in itertools.pairwise(samples)} == {EVERY_S}
    assert {sample.sent_bytes_per_s for sample in samples} == {100}
    assert samples[-1].open > samples[0].open


def test_a_restart_is_no_throughput_and_neither_is_a_clock_that_is_set() -> None:
    history = History()
    history.add(1000.0, 10.0, {"server-a.0": document("1", sent=5000)})
    history.add(1005.0, 15.0, {"server-a.0": document("2", sent=9000)})
    history.add(50.0, 25.0, {"server-a.0": document("2", sent=10_000, received=20_000)})
    (samples,) = history.all().values()
    assert [sample.sent_bytes_per_s for sample in samples] == [0, 0, 100]
    assert [sample.received_bytes_per_s for sample in samples] == [0, 0, 2000]


def test_only_so_many_processes_have_a_history_and_one_that_is_gone_for_an_hour_has_none() -> None:
    history = History()
    first = {f"edge-a.{number}": document() for number in range(PROCESSES + 1)}
    assert len(history.add(1.0, 1.0, first)) == PROCESSES
    assert history.add(2.0, 2.0, {"edge-b.0": document()}) == {}
    assert set(history.add(9e9, 10.0 + KEPT_S, {"edge-b.0": document()})) == {"edge-b.0"}
    assert set(history.all()) == {"edge-b.0"}


class Role:
    """A process of which all is known by its control socket."""

    def __init__(self, directory: Path) -> None:
        self._lock = directory / "server-t.0"
        self.incarnation = "1"
        self.control: ControlSocket | None = None
        self.asked: list[Mapping[str, object]] = []
        self.events: asyncio.Queue[Mapping[str, object]] = asyncio.Queue()
        self.streams = 0

    async def start(self) -> None:
        alone: Commands = {"ready": self._ready, "status": self._status}
        commands: Commands = {"events": self._events, "streams": self._streams}
        self.control = await ControlSocket.open(self._lock, {**alone, **commands})

    def stop(self) -> None:
        assert self.control is not None
        self.control.close()

    async def _ready(self, _: Request) -> object:
        return {"pid": 1, "ready": True, "reason": None, "missing": []}

    async def _status(self, _: Request) -> object:
        return document(self.incarnation)

    async def _events(self, request: Request) -> AsyncGenerator[object, None]:
        self.asked.append(request.options)
        number = 0
        while True:
            event = await self.events.get()
            number += 1
            yield {"after": f"{self.incarnation}-{number}", "missed": 0, "events": [event]}

    async def _streams(self, request: Request) -> AsyncGenerator[object, None]:
        self.asked.append(request.options)
        for number in range(self.streams):
            yield {"at_s": 1.5, "streams": [{"id": f"a-{number}-{part}"} for part in range(10)]}


@pytest.fixture
async def role(tmp_path: Path) -> AsyncIterator[Role]:
    made = Role(tmp_path)
    await made.start()
    yield made
    made.stop()


@contextlib.asynccontextmanager
async def collecting(directory: Path) -> AsyncIterator[Collector]:
    made = Collector(directory, Processes(directory))
    task = asyncio.create_task(made.run())
    try:
        with made.watched():
            yield made
    finally:
        task.cancel()
        await asyncio.wait([task])


def names(collector: Collector) -> list[str]:
    return [event.name for event in collector.feed.after(0, 100)]


async def test_what_happens_is_told_with_its_process_but_for_single_streams(tmp_path: Path, role: Role) -> None:
    async with collecting(tmp_path) as made:
        at = "2026-01-02T03:04:05+00:00"
        for name in ("stream_opened", "peer_down", "stream_ended", "peer_up"):
            role.events.put_nowait({"at": at, "event": name, "message": "text", "peer": "laptop"})
        await eventually(lambda: len(names(made)) == 2, "both are told")
        assert names(made) == ["peer_down", "peer_up"]
        (event, _) = made.feed.after(0, 2)
        told = {"process": "server-t.0", "at": at, "event": "peer_down", "message": "text", "peer": "laptop"}
        assert event.fields == told
        assert role.asked == [{"control": 1, "follow": True, "streams": False}]


async def test_a_process_that_is_asked_again_tells_nothing_twice(tmp_path: Path, role: Role) -> None:
    async with collecting(tmp_path) as made:
        role.events.put_nowait({"at": "x", "event": "peer_down", "message": "text"})
        await eventually(lambda: names(made), "it is told")
        role.stop()
        await role.start()
        await eventually(lambda: len(role.asked) == 2, "it is asked again")
        assert role.asked[1]["after"] == "1-1"


async def test_starts_and_ends_of_processes_are_told_but_no_upgrade_in_place(
    tmp_path: Path, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GONE_S", 0.5)
    async with collecting(tmp_path) as made:
        await eventually(lambda: made.known, "it is there")
        role.stop()
        await role.start()  # within GONE_S, with the same incarnation: its code was replaced
        looks = made.looks
        await eventually(lambda: made.looks > looks + 1, "it was looked at again")
        assert names(made) == []
        role.incarnation = "2"
        await eventually(lambda: names(made) == ["process_started"], "another one has started")
        role.stop()
        await eventually(lambda: names(made) == ["process_started", "process_ended"], "it has ended")
        await role.start()
        await eventually(lambda: names(made)[2:] == ["process_started"], "it has started")


async def test_processes_are_asked_seldom_while_nobody_looks(tmp_path: Path, role: Role) -> None:
    made = Collector(tmp_path, Processes(tmp_path))
    task = asyncio.create_task(made.run())
    await eventually(lambda: made.looks == 1, "it has looked")
    with made.watched():
        await eventually(lambda: made.looks == 2, "at once, as somebody looks")
    task.cancel()
    await asyncio.wait([task])


async def test_a_list_of_streams_is_cut_and_says_so(
    tmp_path: Path, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "MOST", 25)
    listing = Streams(tmp_path)
    for pages, count, is_whole in ((0, 0, True), (2, 20, True), (9, 30, False)):
        role.streams = pages
        found = await listing.list({"service": "web", "client": "", "other": "x"})
        assert found["problems"] == []
        (process,) = cast("list[dict[str, object]]", found["processes"])
        assert (process["who"], process["is_whole"]) == ("server-t.0", is_whole)
        rows = cast("list[dict[str, object]]", process["streams"])
        assert len(rows) == count
        assert all(row["at_s"] == 1.5 for row in rows)
    assert role.asked == [{"control": 1, "service": "web"}] * 3


async def test_what_is_wrong_with_a_list_is_told(tmp_path: Path, role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "LIST_S", 0.1)

    async def silent(_: Request) -> AsyncGenerator[object, None]:
        await asyncio.get_running_loop().create_future()
        yield None

    role.stop()
    commands = {"streams": silent}
    control = await ControlSocket.open(tmp_path / "server-t.0", commands)
    found = await Streams(tmp_path).list({})
    assert found["problems"] == ["server-t.0 does not respond within 0.1 s; is it stopped or overloaded?"]
    control.close()
    await role.start()
    too_long = await Streams(tmp_path / "missing").list({})
    assert too_long == {"processes": [], "problems": []}
