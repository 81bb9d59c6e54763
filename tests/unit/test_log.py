"""What a log line looks like."""

import asyncio
import contextlib
import io
import json
import logging
import re
import warnings as warnings_module
from collections.abc import Iterator

import pytest
from loguru import logger

from goreprox.process.log import LISTED, MAX_EXCEPTION, MAX_MESSAGE, MAX_VALUE, configure, listing, quoted


@pytest.fixture(autouse=True)
def _leave_no_sink() -> Iterator[None]:
    yield
    logger.remove()
    logging.captureWarnings(capture=False)


class Stream(io.StringIO):
    """Standard error, of which one reads what has been written."""

    def getvalue(self) -> str:
        logger.remove()  # as the end of the process does
        return super().getvalue()


class Terminal(Stream):
    def isatty(self) -> bool:
        return True


def configured(level: str, *, as_json: bool, stream: Stream | None = None) -> Stream:
    """Configure with a stream for standard error, and give it."""
    stream = stream or Stream()
    with contextlib.redirect_stderr(stream):
        configure(level, as_json=as_json)
    return stream


def test_a_line_shows_level_message_and_what_was_bound() -> None:
    stderr = configured("info", as_json=False)
    logger.bind(peer="a b", port=80).info("{} <b> {{x}}", "up")
    assert stderr.getvalue().endswith(' INFO    up <b> {x} peer="a b" port=80\n')


def test_the_time_has_its_zone() -> None:
    stderr = configured("info", as_json=False)
    logger.info("x")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d INFO ", stderr.getvalue())


def test_a_list_is_one_word_and_what_is_absent_is_left_out() -> None:
    stderr = configured("info", as_json=False)
    logger.bind(clients=[1, 2], token=None).info("x")
    assert stderr.getvalue().endswith(" x clients=1,2\n")


def test_a_terminal_shows_the_text_alone_which_says_it_all_and_which_worker() -> None:
    stderr = configured("info", as_json=False, stream=Terminal())
    logger.bind(event="ready", clients=[1, 2], worker=1).info("ready: clients on 1, 2")
    assert "INFO" in (line := stderr.getvalue())
    assert line.endswith(" worker 1: ready: clients on 1, 2\n")


@pytest.mark.parametrize("form", ["json", "text", "terminal"])
def test_whatever_is_logged_a_line_is_bounded(form: str) -> None:
    stderr = configured("info", as_json=form == "json", stream=Terminal() if form == "terminal" else Stream())
    evil = '"\x1b\U000e0001' * 100_000
    try:
        int(evil + "\x1b[2J")
    except ValueError:
        logger.opt(exception=True).bind(path=evil, paths=[evil] * 3).error("{}", evil)
    text = stderr.getvalue()
    assert len(text) < 6 * (MAX_MESSAGE + 4 * MAX_VALUE) + 10 * MAX_EXCEPTION
    assert "\x1b[2J" not in text


def test_what_is_quoted_from_outside_is_printable_and_cut() -> None:
    assert quoted("a/é") == "a/é"
    assert quoted("\x1b" * 1000, 8) == r"\x1b\x1b…"
    assert quoted("abc", 2) == "ab…"


def test_a_message_stays_one_line_and_free_of_escape_sequences() -> None:
    stderr = configured("info", as_json=False)
    logger.bind(reason="x\n\x1b[2J").warning("a\nb\x1b[31m é")
    assert stderr.getvalue().count("\n") == 1
    assert "\x1b" not in stderr.getvalue()
    assert "é" in stderr.getvalue()


def test_json_is_flat_and_complete() -> None:
    stderr = configured("debug", as_json=True)
    logger.bind(event="ready", clients=[1, 2], level="forged").debug("a<b\n{}", "{c}")
    entry = json.loads(stderr.getvalue())
    assert entry.pop("time")
    assert entry == {
        "level": "debug",
        "message": "a<b\n{c}",
        "module": __name__,
        "event": "ready",
        "clients": [1, 2],
    }


@pytest.mark.parametrize("as_json", [False, True])
def test_a_traceback_shows_no_values(as_json: bool) -> None:
    stderr = configured("info", as_json=as_json)
    secret = "s" + "3cr3t"
    try:
        int(secret[:0])
    except ValueError:
        logger.exception("oops")
    assert "ValueError" in stderr.getvalue()
    assert "s3cr3t" not in stderr.getvalue()


def test_a_warning_of_python_is_a_line_like_all_else() -> None:
    stderr = configured("info", as_json=True)
    with warnings_module.catch_warnings():
        warnings_module.simplefilter("default")
        configure_again = logging.captureWarnings  # the context has put the default back
        configure_again(capture=False)
        configure_again(capture=True)
        warnings_module.warn("old", DeprecationWarning, stacklevel=1)
    entry = json.loads(stderr.getvalue())
    assert entry["level"] == "warning"
    assert "DeprecationWarning: old" in entry["message"]


async def test_an_exception_that_asyncio_tells_of_is_logged_like_all_else() -> None:
    stderr = configured("info", as_json=True)
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (line,) = stderr.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["module"]) == ("error", "asyncio")
    assert entry["exception"].endswith("ZeroDivisionError: division by zero\n")


def test_a_listing_of_names_from_strangers_is_bounded() -> None:
    assert listing({"b", "a"}) == "a, b"
    assert listing([f"{index:02}" for index in range(LISTED + 3)]) == (
        ", ".join(f"{index:02}" for index in range(LISTED)) + " and 3 more"
    )


def test_lower_levels_are_left_out() -> None:
    stderr = configured("warning", as_json=False)
    logger.info("no")
    assert not stderr.getvalue()


@pytest.mark.parametrize(
    ("no_color", "term", "coloured"),
    [("", "xterm", True), ("1", "xterm", False), ("", "dumb", False), ("", None, False)],
)
def test_colours_appear_on_a_terminal_unless_unwanted(
    monkeypatch: pytest.MonkeyPatch, no_color: str, term: str | None, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    stderr = configured("info", as_json=False, stream=Terminal())
    logger.bind(a=1).warning("x")
    text = stderr.getvalue()
    assert ("\x1b[33m" in text) is coloured
    assert ("\x1b" in text) is coloured
