"""The commands `requests` and `replay`: HTTP requests that servers and edges with --inspect have kept."""

import asyncio
import json as json_format
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from cyclopts import Parameter
from rich.filesize import decimal

from goreprox.cli.columns import columns
from goreprox.cli.options import ALL, AskOptions
from goreprox.cli.summary import duration
from goreprox.control import client
from goreprox.errors import ConfigError, ControlError
from goreprox.process.log import printable, say
from goreprox.status.requests import curl as as_curl

LIST_S: Final = 30.0
"""Deadline for a list: 500 requests with long heads take 1 s of the process, which rests for twice as long."""
REPLAY_S: Final = 35.0
"""Deadline: that of the process for the response, and some."""
HEADER: Final = ("id", "at", "method", "host and path", "service", "status", "took", "sent", "received", "")
LIST, DETAIL, REPLAY = "requests", "request", "replay"
OFF: Final = "no process here keeps requests; start one with --inspect, or add it to its configuration and reload that"
Row = Mapping[str, Any]
"""A request in the form of docs/inspector.md, whose values are what the process says."""


def requests(
    id_: Annotated[str | None, Parameter(name="ID", show_default=False)] = None,
    /,
    *,
    service: Annotated[str | None, Parameter(metavar="NAME")] = None,
    status: Annotated[str | None, Parameter(metavar="STATUS")] = None,
    method: Annotated[str | None, Parameter(metavar="METHOD")] = None,
    path: Annotated[str | None, Parameter(metavar="TEXT")] = None,
    follow: bool = False,
    json: bool = False,
    curl: bool = False,
    of: AskOptions = ALL,
) -> None:
    """List the HTTP requests that processes of this machine have kept, or show one of them with its response.

    Parameters
    ----------
    id_
        Show this request. [default: list all]
    service
        List only requests for this service.
    status
        List only requests whose status begins like this: 404, or 5 for all of 500 to 599.
    method
        List only requests with this method.
    path
        List only requests with this in their host or path.
    follow
        Go on with those that come from now on, each once it is over, until Ctrl-C.
    json
        Print a JSON object per line, as docs/inspector.md describes.
    curl
        Print a command that sends a request like it; replace what is masked (***).
    """
    if id_ is not None:
        _show(_ask_about(of, DETAIL, id_), as_json=json, as_curl_command=curl)
        return
    if curl:
        raise ConfigError("requests --curl: give the id of a request, which `goreprox requests` shows")

    def selected(row: Row) -> bool:
        return (
            service in (None, row["service"])
            and (status is None or str(row["status"] or "").startswith(status))
            and (method is None or row["method"] == method.upper())
            and (path is None or path in f"{row['host']}{row['path']}")
        )

    if follow:
        asyncio.run(_follow(of, selected, as_json=json))
    else:
        _list(of, selected, as_json=json)


def replay(id_: Annotated[str, Parameter(name="ID")], /, *, of: AskOptions = ALL) -> None:
    """Send a request once more through the tunnel, as its client did, with the header Goreprox-Replay: ID.

    Parameters
    ----------
    id_
        Send this request, which `goreprox requests` shows.
    """
    print(columns([HEADER, _cells(_ask_about(of, REPLAY, id_, deadline_s=REPLAY_S))]))


def _roles(of: AskOptions) -> list[str]:
    roles = [role for role in of.roles if role in ("server", "edge")]
    if not roles:
        raise ConfigError(f"role {of.role}: only servers and edges keep requests")
    return roles


def _ask_about(of: AskOptions, command: str, id_: str, *, deadline_s: float | None = None) -> Row:
    """Ask all processes about a request, which one of them has."""
    replies = client.ask_all(
        of.directories, command, roles=_roles(of), name=of.name, deadline_s=deadline_s, options={"id": id_}
    )
    for reply in replies:
        if isinstance(reply.result, dict):
            return reply.result
    problems = [reply.problem for reply in replies if reply.problem is not None]
    unknown = f"request {id_} is not kept here: the last 500 are, until the process ends or is upgraded"
    raise ControlError("; ".join(problems) or unknown)


def _list(of: AskOptions, selected: Callable[[Row], bool], *, as_json: bool) -> None:
    replies = client.ask_all(of.directories, LIST, roles=_roles(of), name=of.name, deadline_s=LIST_S)
    rows: list[tuple[str, Row]] = []
    is_on = False
    for reply in replies:
        for page in reply.pages:
            match page:
                case {"inspecting": bool(inspecting), "requests": [*found]}:
                    is_on |= inspecting
                    rows += [(reply.who, row) for row in found if selected(row)]
    problems = [reply.problem for reply in replies if reply.problem is not None]
    if not is_on and not problems:
        raise ControlError(OFF)
    rows.sort(key=lambda each: str(each[1]["at"]))
    if as_json:
        for who, row in rows:
            print(_line(who, row))
    elif rows:
        print(columns([HEADER, *(_cells(row) for _, row in rows)]))
    if problems:
        raise ControlError("; ".join(problems))


async def _follow(of: AskOptions, selected: Callable[[Row], bool], *, as_json: bool) -> None:
    after: dict[str, str] = {}

    def options(who: str) -> dict[str, object]:
        return {"follow": True} | ({"after": after[who]} if who in after else {})

    def take(who: str, page: object) -> None:
        match page:
            case {"after": str(last), "requests": [*rows]}:
                after[who] = last
                for row in rows:
                    if row["over"] and selected(row):
                        print(_line(who, row) if as_json else "  ".join(filter(None, _cells(row))), flush=True)

    await client.follow(
        of.directories,
        LIST,
        roles=_roles(of),
        name=of.name,
        options=options,
        take=take,
        failed=lambda problem: say(f"goreprox: {problem}; retrying"),
    )


def _line(who: str, row: Row) -> str:
    return json_format.dumps({"process": who, **row})


def _cells(row: Row) -> tuple[str, ...]:
    notes = (row["error"], f"replay of {row['replay_of']}" if row["replay_of"] else None, None if row["over"] else "…")
    cells = (
        row["id"],
        row["at"],
        row["method"],
        f"{row['host']}{row['path']}",
        row["service"],
        str(row["status"] or ""),
        duration(row["duration_s"]),
        decimal(row["request_bytes"]),
        decimal(row["response_bytes"]),
        ", ".join(filter(None, notes)),
    )
    return tuple(map(printable, cells))


def _show(detail: Row, *, as_json: bool, as_curl_command: bool) -> None:
    if as_curl_command:
        print(as_curl(detail))  # type: ignore[arg-type] # the process says so
        return
    if as_json:
        print(json_format.dumps(detail))
        return
    print(columns([HEADER, _cells(detail)]))
    steps = {name.removesuffix("_s"): value for name, value in detail["timing"].items() if value is not None}
    print("\n" + ", ".join(f"{name} {duration(value)}" for name, value in steps.items()))
    _print_message(f"{detail['method']} {detail['path']} HTTP/{detail['version']}", detail["request"])
    if detail["response"] is not None:
        _print_message(f"{detail['status']} {detail['reason']}", detail["response"])
    if detail["not_replayable"] is not None:
        print(f"\nIt cannot be sent once more: {printable(detail['not_replayable'])}.")


def _print_message(first: str, message: Row) -> None:
    print(f"\n{printable(first)}")
    for name, value in [*message["fields"], *message["trailers"]]:
        print(printable(f"{name}: {value}"))
    body = message["body"]
    if body["text"]:
        print()
        for line in _pretty(body["text"]).splitlines():
            print(printable(line))
    if "note" in body:
        print(printable(f"({body['bytes']} bytes: {body['note']})"))


def _pretty(text: str) -> str:
    """Indent JSON."""
    try:
        return json_format.dumps(json_format.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
