"""Lines that others cause are few, and none goes uncounted."""

import asyncio
from collections.abc import Iterator

import pytest
from loguru import logger

from brokers.limited_log import BURST, PERIOD_S, LimitedLog
from tests.support.waiting import DEADLINE_S


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


Lines = list[tuple[str, str, dict[str, object]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Levels, texts and fields."""
    seen: Lines = []
    sink = logger.add(
        lambda message: seen.append(
            (message.record["level"].name, message.record["message"], dict(message.record["extra"]))
        )
    )
    yield seen
    logger.remove(sink)


def test_each_text_is_logged_once_a_period(lines: Lines) -> None:
    clock = Clock()
    log = LimitedLog(clock=clock)
    for _ in range(2):
        log.say("refused", "a {x}", client="c")
        log.say("refused", "b")
    said = [("WARNING", "a {x}", {"event": "refused", "client": "c"}), ("WARNING", "b", {"event": "refused"})]
    assert lines == said
    clock.now += PERIOD_S
    log.say("refused", "a {x}", client="c")
    assert lines[2:] == [
        ("WARNING", "2 more in the last 60 s, the last: b", {"event": "refused", "more": 2, "seconds": 60}),
        said[0],
    ]


def test_different_texts_beyond_the_burst_are_counted(lines: Lines) -> None:
    clock = Clock()
    log = LimitedLog(clock=clock)
    for number in range(1000):
        log.say("refused", f"client {number}", "INFO")
    assert len(lines) == BURST
    clock.now += PERIOD_S
    log.say("refused", "client 1000", "INFO")
    assert [fields.get("more", 1) for _, _, fields in lines] == [1] * BURST + [1000 - BURST, 1]
    assert {level for level, _, _ in lines} == {"INFO"}


def test_events_are_limited_independently(lines: Lines) -> None:
    log = LimitedLog(clock=Clock())
    for number in range(BURST + 1):
        log.say("refused", f"client {number}")
    log.say("malformed", "x")
    assert lines[-1][1] == "x"


def test_there_is_no_summary_if_every_line_was_logged(lines: Lines) -> None:
    clock = Clock()
    log = LimitedLog(clock=clock)
    for _ in range(2):
        log.say("refused", "a")
        clock.now += PERIOD_S
    assert [text for _, text, _ in lines] == ["a", "a"]


def test_without_a_summary_texts_are_repeated_each_period_and_not_counted(lines: Lines) -> None:
    clock = Clock()
    log = LimitedLog(burst=2, period_s=300, summary=False, clock=clock)
    for text in "abcab":
        log.say("down", text)
    clock.now += 299
    log.say("down", "a")
    assert [text for _, text, _ in lines] == ["a", "b"]
    clock.now += 1
    log.say("down", "a")
    assert [text for _, text, _ in lines] == ["a", "b", "a"]


def test_after_a_reset_everything_is_logged_again(lines: Lines) -> None:
    log = LimitedLog(clock=Clock())
    for _ in range(2):
        log.say("refused", "a")
    log.reset()
    log.say("refused", "a")
    assert [(text, fields.get("more")) for _, text, fields in lines] == [
        ("a", None),
        ("1 more in the last 0 s, the last: a", 1),
        ("a", None),
    ]


async def test_the_summary_is_logged_at_the_end_of_the_period_by_itself(lines: Lines) -> None:
    log = LimitedLog(period_s=0.05, clock=asyncio.get_running_loop().time)
    for _ in range(3):
        log.say("refused", "a")
    async with asyncio.timeout(DEADLINE_S):
        while len(lines) < 2:  # noqa: ASYNC110 -- a sink has no event
            await asyncio.sleep(0.005)
    log.say("refused", "a")
    assert [fields.get("more") for _, _, fields in lines] == [None, 2, None]
