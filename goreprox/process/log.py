"""The format of log lines: one line each on standard error, for people or as JSON.

Modules that do IO log through loguru and bind fields (`logger.bind(event=…, peer=…)`). The text has all that people
need, so a terminal shows no fields (except those of the access log); programs and tests rely on fields, never on the
text. Payloads are never logged, and tracebacks show no values of variables. The secrets of join strings and proxies are
hidden.

Text from outside is truncated and escaped: a line has at most `MAX_MESSAGE` characters of text, `MAX_VALUE` of each
field and `MAX_EXCEPTION` of a traceback.
"""

import datetime
import functools
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO

from loguru import logger

from goreprox.process.log_writer import LogWriter

if TYPE_CHECKING:
    from loguru import Message

ACCESS: Final = "access"
"""The `event` of lines of the access log: of HTTP requests,"""
ACCESS_TCP: Final = "access_tcp"
"""and of other connections at their end."""
LISTED: Final = 16
MAX_MESSAGE: Final = 2048
MAX_VALUE: Final = 512
MAX_EXCEPTION: Final = 16_384
MAX_QUOTED: Final = 200
_COLOURS: Final = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_JOIN_STRING: Final = re.compile(r"(goreprox:/{1,2})[\w-]{8}((?!goreprox:/)([\w=\\-]|\s+(?=\S)))*", re.IGNORECASE)
"""The secret is everything up to the @, even if it was broken by white space, escaped or not."""
_CREDENTIALS: Final = re.compile(r"((?:socks5h?|http)://)[^\s/@:]*:[^\s@/]*@", re.IGNORECASE)
"""User and password of a proxy."""
_DIM: Final = "\x1b[2m"
_PLAIN: Final = "\x1b[0m"


class Entry(NamedTuple):
    """A line that is not formatted yet."""

    time: datetime.datetime
    level: str
    message: str
    module: str | None
    fields: Mapping[str, object]
    exception: str = ""
    """A traceback; empty if there is none."""


class _Sink:
    """The sink of loguru, which calls `stop` when the process ends."""

    def __init__(self, writer: LogWriter, line: Callable[[Entry], str]) -> None:
        self._writer = writer
        self._line = line

    def write(self, message: "Message") -> None:
        record = message.record
        exception = record["exception"]
        line = self._line(
            Entry(
                record["time"],
                record["level"].name,
                record["message"],
                record["name"],
                record["extra"],
                "" if exception is None else "".join(traceback.format_exception(exception.value)),
            )
        )
        self._writer.write(redacted(line))

    def stop(self) -> None:
        self._writer.flush()


def configure(level: str, *, as_json: bool) -> None:
    """Send lines of `level` and above to standard error, and nowhere else.

    There are colours on a terminal that can show them, unless `NO_COLOR` is set. Lines of libraries that use `logging`
    (as asyncio does for an exception that was not caught) or `warnings` are formatted alike.
    """
    line = _json_line if as_json else _terminal_line if sys.stderr.isatty() else _text_line

    def lost(lines: int) -> str:
        text = f"{lines} log lines were lost: they could not be written"
        fields = {"event": "log_lost", "lines": lines}
        return line(Entry(datetime.datetime.now().astimezone(), "ERROR", text, __name__, fields))

    writer = _writer_to(sys.stderr)
    writer.lost_line = lost
    # Lines are made here and not by loguru's format, which would look for its markup in bound values.
    logger.remove()
    logger.add(_Sink(writer, line), level=level.upper(), format="", backtrace=False, diagnose=False)
    logging.basicConfig(handlers=[_FromLogging()], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)


def say(text: str) -> None:
    """Write a line to standard error after all that was logged; wait for it, at most `FLUSH_S`."""
    writer = _writer_to(sys.stderr)
    writer.write(redacted(f"{text}\n"))
    writer.flush()


def flush() -> None:
    """Wait for all lines to be written, at most `FLUSH_S`."""
    _writer_to(sys.stderr).flush()


@functools.lru_cache(maxsize=1)
def _writer_to(stream: TextIO) -> LogWriter:
    """Return the one writer to a stream."""
    return LogWriter(stream)


class _FromLogging(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        named = logger.patch(lambda line: line.update({"name": record.name}))
        named.opt(exception=record.exc_info).log(record.levelname, "{}", record.getMessage())


def counted(number: int, noun: str) -> str:
    """Return `1 stream`, or `3 streams`."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def listing(names: Collection[str]) -> str:
    """Return names for a log line: sorted, each truncated, and at most `LISTED` of them."""
    shown = ", ".join(quoted(name) for name in sorted(names)[:LISTED])
    return shown if len(names) <= LISTED else f"{shown} and {len(names) - LISTED} more"


def redacted(text: str) -> str:
    """Return a text with the secret of every join string in it hidden, and user and password of every proxy."""
    return _CREDENTIALS.sub(r"\1…@", _JOIN_STRING.sub(r"\1…", text))


def quoted(text: str, most: int = MAX_QUOTED) -> str:
    """Return text from outside for use in a line: printable, and about `most` characters at most."""
    return _cut(printable(text[: most + 1]), most)


def printable(text: str) -> str:
    """Escape all that is not printable: line feeds, and sequences that control a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _json_line(entry: Entry) -> str:
    """Return a flat JSON object; bound fields cannot replace the time, the level or the message."""
    document: dict[str, object] = {
        "time": _time(entry, "T"),
        "level": entry.level.lower(),
        "message": _cut(entry.message, MAX_MESSAGE),
        "module": entry.module,
    }
    document |= {key: _json_value(value) for key, value in entry.fields.items() if key not in document}
    if entry.exception:
        document["exception"] = _tail(entry.exception)
    return json.dumps(document, ensure_ascii=False) + "\n"


def _json_value(value: object) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case list() | tuple():
            return [_json_value(item) for item in value]
        case _:
            return _cut(str(value), MAX_VALUE)


def _text_line(entry: Entry) -> str:
    text = quoted(entry.message, MAX_MESSAGE)
    return f"{_time(entry)} {entry.level:<7} {text}{_words(entry.fields)}\n{_lines(entry.exception)}"


def _terminal_line(entry: Entry) -> str:
    """Return the text, with the number of the worker if there are several."""
    worker = f"worker {entry.fields['worker']}: " if "worker" in entry.fields else ""
    fields = {key: value for key, value in entry.fields.items() if key not in ("event", "worker")}
    table = _words(fields) if entry.fields.get("event") in (ACCESS, ACCESS_TCP) else ""
    text = f"{worker}{quoted(entry.message, MAX_MESSAGE)}{table}\n{_lines(entry.exception)}"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return f"{_time(entry)} {entry.level:<7} {text}"
    return f"{_DIM}{_time(entry)}{_PLAIN} {_COLOURS.get(entry.level, '')}{entry.level:<7}{_PLAIN} {text}"


def _time(entry: Entry, separator: str = " ") -> str:
    return entry.time.isoformat(separator, timespec="milliseconds")


def _words(fields: Mapping[str, object]) -> str:
    return "".join(
        f" {key}={_word(value)}" for key, value in fields.items() if value is not None and value is not False
    )


def _word(value: object) -> str:
    """Return a value as one word, a list as its items separated by commas."""
    items = value if isinstance(value, list | tuple) else [value]
    text = _cut(",".join(map(str, items)), MAX_VALUE)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


def _tail(exception: str) -> str:
    """Return the end of a traceback, which has the error."""
    return exception if len(exception) <= MAX_EXCEPTION else f"…{exception[-MAX_EXCEPTION:]}"


def _lines(exception: str) -> str:
    return "".join(f"{printable(line)}\n" for line in _tail(exception).splitlines())
