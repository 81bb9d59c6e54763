"""What a process tells those who follow it: everything, in order, and how much they have missed."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from goreprox.cli.events import _Shown
from goreprox.control import client
from goreprox.control.message import Request, encode_page
from goreprox.control.socket import ControlSocket, Pages
from goreprox.process.feed import KEPT, Feed
from goreprox.process.instance import Instance
from goreprox.status import events
from goreprox.status.events import PAGE, EventList
from goreprox.status.ids import Ids
from tests.support.waiting import DEADLINE_S, eventually

INCARNATION = b"\xab\xcd\xef" + bytes(13)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "GATHER_S", 0.0)


def event_list(directory: Path, feed: Feed) -> EventList:
    instance = Instance.acquire(directory, "provider", "n", INCARNATION)
    instance.release()
    return EventList(Ids(instance.incarnation), feed)


def add(feed: Feed, count: int) -> None:
    for _ in range(count):
        feed.add("happened", f"event {feed.count + 1}", {})


def pages_of(shown: EventList, **options: object) -> Pages:
    pages = shown.commands["events"](Request("events", options))
    assert isinstance(pages, AsyncIterator)
    return pages


async def page_of(pages: Pages) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(pages)


def messages(page: Any) -> list[str]:
    return [event["message"] for event in page["events"]]


async def all_of(pages: Pages) -> list[str]:
    async with asyncio.timeout(DEADLINE_S):
        return [message async for page in pages for message in messages(page)]


async def test_the_last_events_are_kept_and_listed_in_order(directory: Path) -> None:
    feed = Feed()
    assert await all_of(pages_of(event_list(directory, feed))) == []
    add(feed, KEPT + 5)
    assert feed.forgotten == 5
    assert await all_of(pages_of(event_list(directory, feed))) == [f"event {n + 1}" for n in range(5, KEPT + 5)]


async def test_an_event_has_its_time_its_name_and_its_fields_and_the_id_of_its_stream(directory: Path) -> None:
    feed = Feed()
    feed.add("stream_opened", "a stream", {"number": 17, "service": "web"})
    (event,) = (await page_of(pages_of(event_list(directory, feed))))["events"]
    assert event.pop("at").endswith("+00:00")
    assert event == {"event": "stream_opened", "message": "a stream", "id": "abcdef-17", "service": "web"}


async def test_everyone_who_follows_gets_what_happens_from_then_on(directory: Path) -> None:
    feed = Feed()
    add(feed, 1)
    shown = event_list(directory, feed)
    following = [pages_of(shown, follow=True) for _ in range(3)]
    for pages in following:
        assert messages(await page_of(pages)) == ["event 1"]
    for number in range(2, 5):
        waiting = [asyncio.create_task(page_of(pages)) for pages in following]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        add(feed, 1)
        for task in waiting:
            assert messages(await task) == [f"event {number}"]
    for pages in following:
        await pages.aclose()


async def test_one_who_is_slow_gets_what_is_left_and_how_many_were_missed(directory: Path) -> None:
    feed = Feed()
    add(feed, 1)
    pages = pages_of(event_list(directory, feed), follow=True)
    assert (await page_of(pages))["missed"] == 0
    add(feed, KEPT + 7)
    page = await page_of(pages)
    assert page["missed"] == 7
    assert messages(page) == [f"event {number}" for number in range(9, 9 + PAGE)]
    assert (await page_of(pages))["missed"] == 0
    await pages.aclose()


async def test_one_who_comes_back_gets_what_is_new_also_after_an_upgrade(directory: Path) -> None:
    feed = Feed()
    add(feed, 3)
    shown = event_list(directory, feed)
    after = (await page_of(pages_of(shown)))["after"]
    assert after == "abcdef-3"
    assert await all_of(pages_of(shown, after=after)) == []
    add(feed, 1)
    assert await all_of(pages_of(shown, after=after)) == ["event 4"]
    successor = Feed()
    successor.count = feed.count + 2
    add(successor, 1)
    page = await page_of(pages_of(event_list(directory, successor), after=after))
    assert (page["missed"], messages(page)) == (3, ["event 7"])


@pytest.mark.parametrize("after", ["123456-3", "nonsense", 3, None])
async def test_one_who_has_followed_another_process_gets_all_that_is_kept(directory: Path, after: object) -> None:
    feed = Feed()
    add(feed, 2)
    assert await all_of(pages_of(event_list(directory, feed), after=after)) == ["event 1", "event 2"]


async def test_one_who_names_an_event_that_is_still_to_come_waits_for_the_next_one(directory: Path) -> None:
    feed = Feed()
    add(feed, 2)
    pages = pages_of(event_list(directory, feed), follow=True, after="abcdef-9")
    waiting = asyncio.create_task(page_of(pages))
    await asyncio.sleep(0)
    add(feed, 1)
    assert messages(await waiting) == ["event 3"]
    await pages.aclose()


# The other end.


@contextlib.asynccontextmanager
async def serving(directory: Path, lock: str, feed: Feed) -> AsyncIterator[ControlSocket]:
    opened = await ControlSocket.open(directory / lock, event_list(directory, feed).commands)
    try:
        yield opened
    finally:
        opened.close()


class Follower:
    """Follows all processes of a directory."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "AGAIN_S", 0.01)
        self.got: list[tuple[str, str]] = []
        self.problems: list[str] = []
        self.shown = _Shown(as_json=True)
        work = client.follow(
            [directory], "events", options=self.shown.request, take=self.take, failed=self.problems.append
        )
        self.task = asyncio.create_task(work)

    def take(self, who: str, page: object) -> None:
        self.got += [(who, message) for message in messages(page)]
        self.shown.add(who, page)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def test_processes_are_followed_that_start_later_or_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = Follower(directory, monkeypatch)
    one, two = Feed(), Feed()
    add(one, 1)
    async with serving(directory, "server-one.0", one):
        await eventually(lambda: follower.got == [("server-one.0", "event 1")])
        async with serving(directory, "edge-two.0", two):
            add(two, 1)
            await eventually(lambda: follower.got[1:] == [("edge-two.0", "event 1")])
        await eventually(lambda: follower.problems)
        assert follower.problems[0].startswith("edge-two.0 disconnected")
        add(two, 1)
        async with serving(directory, "edge-two.0", two):
            await eventually(lambda: follower.got[2:] == [("edge-two.0", "event 2")])
            add(one, 1)
            await eventually(lambda: follower.got[3:] == [("server-one.0", "event 2")])
    await follower.end()


async def test_what_cannot_be_printed_ends_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(who: str, page: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Follower, "take", staticmethod(full))
    feed = Feed()
    add(feed, 1)
    async with serving(directory, "server-one.0", feed):
        follower = Follower(directory, monkeypatch)
        with pytest.raises(BrokenPipeError):
            await asyncio.wait_for(follower.task, DEADLINE_S)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (encode_page({}), "server-n.0 disconnected"),
        (encode_page({}) + b'{"control": 1, "error": "it is tired"}', "server-n.0: it is tired"),
        (encode_page({}) + b'{"control": 2}', "server-n.0 runs another version"),
        (b'{"control": 2}\n', "server-n.0 runs another version"),
    ],
)
async def test_why_nothing_more_comes_is_told(
    directory: Path, monkeypatch: pytest.MonkeyPatch, reply: bytes, problem: str
) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(reply)
        writer.close()

    monkeypatch.setattr(Follower, "take", lambda *_: None)
    async with await asyncio.start_unix_server(say, directory / "server-n.0.sock"):
        follower = Follower(directory, monkeypatch)
        await eventually(lambda: follower.problems)
        assert follower.problems[0].startswith(problem)
        await follower.end()


def page(*events: Mapping[str, object], missed: int = 0) -> dict[str, object]:
    return {"after": "abcdef-1", "missed": missed, "events": events}


def printed(capsys: pytest.CaptureFixture[str], *, as_json: bool, add: Callable[[_Shown], None]) -> list[str]:
    shown = _Shown(as_json=as_json)
    add(shown)
    shown.print()
    return capsys.readouterr().out.splitlines()


def test_events_of_several_processes_are_printed_in_the_order_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    def add(shown: _Shown) -> None:
        shown.add("b", page({"at": "2", "event": "x", "message": "two"}, {"at": "3", "event": "x", "message": "three"}))
        shown.add("a", page({"at": "1", "event": "x", "message": "one\x1b"}, {"at": "2", "event": "x", "message": "2"}))

    assert printed(capsys, as_json=False, add=add) == ["1 a: one\\x1b", "2 b: two", "2 a: 2", "3 b: three"]


def test_a_line_names_the_stream_and_what_was_missed_comes_before(capsys: pytest.CaptureFixture[str]) -> None:
    def add(shown: _Shown) -> None:
        shown.add("a", page({"at": "1", "event": "x", "message": "ended", "id": "abcdef-7"}, missed=3))

    assert printed(capsys, as_json=False, add=add) == ["1 a: 3 events missed", "1 a: abcdef-7 ended"]
    missed, ended = map(json.loads, printed(capsys, as_json=True, add=add))
    assert missed == {"process": "a", "at": "1", "event": "events_missed", "message": "3 events missed", "events": 3}
    assert ended == {"process": "a", "at": "1", "event": "x", "message": "ended", "id": "abcdef-7"}
