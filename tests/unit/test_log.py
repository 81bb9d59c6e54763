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


def test_a_line_has_level_message_and_bound_fields() -> None:
    stderr = configured("info", as_json=False)
    logger.bind(peer="a b", port=80).info("{} <b> {{x}}", "up")
    assert stderr.getvalue().endswith(' INFO    up <b> {x} peer="a b" port=80\n')


def test_times_have_a_time_zone() -> None:
    stderr = configured("info", as_json=False)
    logger.info("x")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d INFO ", stderr.getvalue())


def test_lists_are_one_word_and_missing_values_are_left_out() -> None:
    stderr = configured("info", as_json=False)
    logger.bind(clients=[1, 2], token=None).info("x")
    assert stderr.getvalue().endswith(" x clients=1,2\n")


def test_a_terminal_shows_the_message_and_the_worker_but_no_fields() -> None:
    stderr = configured("info", as_json=False, stream=Terminal())
    logger.bind(event="ready", clients=[1, 2], worker=1).info("ready: clients on 1, 2")
    assert "INFO" in (line := stderr.getvalue())
    assert line.endswith(" worker 1: ready: clients on 1, 2\n")


@pytest.mark.parametrize("form", ["json", "text", "terminal"])
def test_lines_are_bounded_whatever_is_logged(form: str) -> None:
    stderr = configured("info", as_json=form == "json", stream=Terminal() if form == "terminal" else Stream())
    evil = '"\x1b\U000e0001' * 100_000
    try:
        int(evil + "\x1b[2J")
    except ValueError:
        logger.opt(exception=True).bind(path=evil, paths=[evil] * 3).error("{}", evil)
    text = stderr.getvalue()
    assert len(text) < 6 * (MAX_MESSAGE + 4 * MAX_VALUE) + 10 * MAX_EXCEPTION
    assert "\x1b[2J" not in text


def test_quoted_text_is_printable_and_truncated() -> None:
    assert quoted("a/é") == "a/é"
    assert quoted("\x1b" * 1000, 8) == r"\x1b\x1b…"
    assert quoted("abc", 2) == "ab…"


def test_messages_are_one_line_without_escape_sequences() -> None:
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


def test_warnings_of_python_are_logged() -> None:
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


async def test_exceptions_reported_by_asyncio_are_logged() -> None:
    stderr = configured("info", as_json=True)
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (line,) = stderr.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["module"]) == ("error", "asyncio")
    assert entry["exception"].endswith("ZeroDivisionError: division by zero\n")


def test_a_list_of_names_is_bounded() -> None:
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
def test_a_terminal_has_colours_unless_no_color_is_set(
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
