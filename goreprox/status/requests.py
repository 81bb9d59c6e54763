"""The form in which the inspector of an edge shows requests, and how one is written for curl."""

import shlex
from typing import NotRequired, TypedDict


class RequestRow(TypedDict):
    """A request in a list; docs/inspector.md explains every field."""

    id: str
    at: str
    method: str
    host: str
    path: str
    service: str
    client: str
    token: str | None
    provider: str | None
    status: int | None
    error: str | None
    over: bool
    request_bytes: int
    response_bytes: int
    duration_s: float
    replay_of: str | None


class RequestsPage(TypedDict):
    """Some requests, the oldest first, of which a later page may have a newer state."""

    inspecting: bool
    """Whether the process keeps requests."""
    after: str
    """Another request for a list names it, and gets what has changed since."""
    oldest: str | None
    """The first one that is still kept; those before it are gone."""
    requests: list[RequestRow]


class Timing(TypedDict):
    """In seconds; None for what has not happened, or is not known."""

    queue_s: float | None
    target_s: float | None
    transfer_s: float | None


class BodyDetail(TypedDict):
    """A body, without the framing of chunks."""

    bytes: int
    kept_bytes: int
    type: str
    encoding: str
    text: str | None
    """Decoded and masked; None if it is no text."""
    note: NotRequired[str]
    """Why there is no text, or not all of it."""


class MessageDetail(TypedDict):
    """A request or a response."""

    fields: list[tuple[str, str]]
    trailers: list[tuple[str, str]]
    body: BodyDetail


class RequestDetail(RequestRow):
    """A request with its response; docs/inspector.md explains every field."""

    scheme: str
    version: str
    reason: str
    timing: Timing
    request: MessageDetail
    response: MessageDetail | None
    not_replayable: str | None
    """Why it cannot be sent once more; None: it can."""


_ITS_OWN = frozenset(("host", "content-length", "transfer-encoding", "connection", "expect"))
"""Fields that curl writes itself."""


def curl(detail: RequestDetail) -> str:
    """Return a command that sends a request like this one; what is masked has to be filled in.

    Strangers have chosen what is in it: it must read no file and do nothing else to the shell, and curl change nothing.
    """
    words = ["curl", "--globoff", "--path-as-is", f"{detail['scheme']}://{detail['host']}{detail['path']}"]
    body = detail["request"]["body"]
    if detail["method"] == "HEAD":
        words.append("--head")
    elif detail["method"] != ("POST" if body["bytes"] else "GET"):
        words += ["-X", detail["method"]]
    for name, value in detail["request"]["fields"]:
        if name.lower() not in _ITS_OWN:
            words += ["-H", f"{name}: {value}" if value else f"{name};"]
    if body["text"] is None or "note" in body:
        words += ["--data-binary", "@BODY"]
    elif body["bytes"]:
        words += ["--data-raw", body["text"]]
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """Quote a word for a shell; in ANSI-C quotes, which bash, zsh and ksh know, what would control a terminal."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(_escaped(character) for character in word) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogatepass"))
