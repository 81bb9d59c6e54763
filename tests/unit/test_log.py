"""What a log line looks like."""

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator

import pytest
from loguru import logger

from goreprox.log import LISTED, configure, listing


@pytest.fixture(autouse=True)
def _leave_no_sink() -> Iterator[None]:
    yield
    logger.remove()


def configured(level: str, *, as_json: bool, stream: io.StringIO | None = None) -> io.StringIO:
    """Configure with a stream for standard error, and give it."""
    stream = stream or io.StringIO()
    with contextlib.redirect_stderr(stream):
        configure(level, as_json=as_json)
    return stream


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_shows_level_message_and_what_was_bound() -> None:
    stderr = configured("info", as_json=False)
    logger.bind(peer="a b", port=80).info("{} <b> {{x}}", "up")
    assert stderr.getvalue().endswith(' INFO    up <b> {x} peer="a b" port=80\n')


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


def test_an_exception_that_asyncio_tells_of_is_logged_like_all_else() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    stderr = configured("info", as_json=True)
    asyncio.run(main())
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


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_appear_on_a_terminal_unless_unwanted(
    monkeypatch: pytest.MonkeyPatch, no_color: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    stderr = configured("info", as_json=False, stream=Terminal())
    logger.bind(a=1).warning("x")
    assert ("\x1b[33m" in stderr.getvalue()) is coloured
