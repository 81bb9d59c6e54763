"""Where log lines go and what they look like: one line each on standard error, for people or as JSON.

Modules that do IO log through loguru and bind what a line is about (`logger.bind(peer=...)`); this one only
shows it. Never payloads: whoever logs a value answers for it. Tracebacks show no values of variables.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, TextIO

from loguru import logger

if TYPE_CHECKING:
    from loguru import Message, Record

LISTED: Final = 16
_COLOURS: Final = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_DIM: Final = "\x1b[2m"
_PLAIN: Final = "\x1b[0m"


def configure(level: str, *, as_json: bool) -> None:
    """Send everything from `level` on to standard error, and to nowhere else.

    Colours appear on a terminal only, and not where `NO_COLOR` is set. What libraries say through `logging` (asyncio:
    an exception that nobody caught) goes the same way.
    """
    stream = sys.stderr
    coloured = stream.isatty() and not os.environ.get("NO_COLOR")
    # Lines are made here and not by loguru's format, which would look for its markup in bound values.
    line = _json_line if as_json else _coloured_line if coloured else _text_line
    logger.remove()
    logger.add(_writer(stream, line), level=level.upper(), format="", backtrace=False, diagnose=False)
    logging.basicConfig(handlers=[_FromLogging()], level=logging.WARNING, force=True)


class _FromLogging(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        named = logger.patch(lambda line: line.update({"name": record.name}))
        named.opt(exception=record.exc_info).log(record.levelname, "{}", record.getMessage())


def listing(names: Collection[str]) -> str:
    """Give names for a log line: sorted, and of very many only the first."""
    shown = ", ".join(sorted(names)[:LISTED])
    return shown if len(names) <= LISTED else f"{shown} and {len(names) - LISTED} more"


def _writer(stream: TextIO, line: "Callable[[Record], str]") -> "Callable[[Message], None]":
    def write(message: "Message") -> None:
        stream.write(line(message.record))

    return write


def _json_line(record: "Record") -> str:
    """Make one flat JSON object; what was bound can hide neither the time nor the level nor the message."""
    entry: dict[str, object] = {
        "time": record["time"].isoformat(timespec="milliseconds"),
        "level": record["level"].name.lower(),
        "message": record["message"],
        "module": record["name"],
    }
    entry |= {key: value for key, value in record["extra"].items() if key not in entry}
    if record["exception"] is not None:
        entry["exception"] = _exception(record)
    return json.dumps(entry, default=str, ensure_ascii=False) + "\n"


def _text_line(record: "Record") -> str:
    return (
        f"{_time(record)} {record['level'].name:<7} {printable(record['message'])}"
        f"{_context(record)}\n{_exception(record)}"
    )


def _coloured_line(record: "Record") -> str:
    level = record["level"].name
    return (
        f"{_DIM}{_time(record)}{_PLAIN} {_COLOURS.get(level, '')}{level:<7}{_PLAIN} "
        f"{printable(record['message'])}{_DIM}{_context(record)}{_PLAIN}\n{_exception(record)}"
    )


def _time(record: "Record") -> str:
    return record["time"].strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _context(record: "Record") -> str:
    return "".join(f" {key}={_word(str(value))}" for key, value in record["extra"].items())


def _word(text: str) -> str:
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


def printable(text: str) -> str:
    """Keep one message one line, and a terminal safe from escape sequences in it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _exception(record: "Record") -> str:
    exception = record["exception"]
    return "" if exception is None else "".join(traceback.format_exception(exception.value))
