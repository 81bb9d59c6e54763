"""The form of requests and replies on a control socket: one JSON object each, a request in one line.

    {"control": 1, "command": "status"}
    {"control": 1, "result": …}  or  {"control": 1, "error": "one line for people", "exit_code": 1}

Further keys of a request are options of its command. What is long, or without end, comes in pages before the result,
each in a line of its own: {"control": 1, "page": …}
"""

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from goreprox.errors import ControlError, GoreproxError

VERSION: Final = 1
"""Of this form; what is in a result is the matter of its command."""
REQUEST_BYTES: Final = 4096
REPLY_BYTES: Final = 16 << 20


class Request(NamedTuple):
    """What a process is asked to do."""

    command: str
    options: Mapping[str, object]
    client: int = -1
    """The descriptor of its connection. The control socket closes it."""


def encode_request(command: str, **options: object) -> bytes:
    """Return a line of at most `REQUEST_BYTES`."""
    return json.dumps({"control": VERSION, "command": command} | options).encode() + b"\n"


def parse_request(line: bytes) -> Request:
    """Read a request.

    Raises:
        ControlError: it is malformed, or of another version.
    """
    document = _object(line)
    if document is None or document.get("control") != VERSION:
        raise ControlError(f'expected one line, like {{"control": {VERSION}, "command": "status"}}')
    match document:
        case {"command": str(command), **options}:
            return Request(command, options)
    raise ControlError("expected a command")


def encode_result(result: object) -> bytes:
    """Return the reply to a request that was fulfilled."""
    return json.dumps({"control": VERSION, "result": result}).encode()


def encode_page(page: object) -> bytes:
    """Return a line."""
    return json.dumps({"control": VERSION, "page": page}).encode() + b"\n"


def encode_error(error: GoreproxError) -> bytes:
    """Return the reply to a request that was not."""
    return json.dumps({"control": VERSION, "error": str(error), "exit_code": error.exit_code}).encode()


def parse_page(line: bytes) -> object:
    """Return a page.

    Raises:
        LookupError: it is none.
    """
    match _object(line):
        case {"control": 1, "page": page}:
            return page
    raise LookupError("no page")


def parse_reply(data: bytes) -> object:
    """Return the result.

    Raises:
        ControlError: the process has refused; the message is its own.
        ValueError: the reply is not whole.
        LookupError: it is of another version.
    """
    document = _object(data)
    if document is None:
        json.loads(data)  # for its ValueError, unless it is JSON and no object
    match document:
        case {"control": 1, "result": result}:
            return result
        case {"control": 1, "error": str(text)}:
            raise ControlError(text)
    raise LookupError("another version")


def _object(data: bytes) -> dict[str, object] | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
