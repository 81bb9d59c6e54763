"""The commands `streams` and `end`: every connection by its id."""

import time
from collections.abc import Mapping, Sequence
from json import dumps
from typing import Annotated, Any, Final, NamedTuple

from cyclopts import Parameter
from rich.filesize import decimal

from goreprox.cli.columns import columns
from goreprox.cli.options import ALL, AskOptions
from goreprox.cli.summary import duration
from goreprox.cli.watch import clear, repeat
from goreprox.config.networks import parse_network
from goreprox.control.client import Reply, ask_all
from goreprox.errors import ConfigError, ControlError
from goreprox.process.log import counted, printable

LIST_S: Final = 180.0
"""Deadline for all pages: a million streams are 40,000 pages, each 3 ms with the work of the process between them."""
RATE_S: Final = 1.0
"""Between the two looks of which the rate is computed."""
IDS: Final = 100
"""In one request, of at most 30 bytes each: a request has 4,096."""
HEADER: Final = ("id", "client", "service", "by way of", "state", "open", "sent", "received", "", "", "outages", "")
Row = dict[str, Any]
"""A stream in the form of docs/status.md, whose values are what the process says."""
NOTHING: Final[Row] = {}


class Look(NamedTuple):
    """The streams of one process, by id."""

    who: str
    rows: dict[str, Row]


def streams(
    *,
    service: Annotated[str | None, Parameter(metavar="NAME")] = None,
    client: Annotated[str | None, Parameter(metavar="CIDR")] = None,
    provider: Annotated[str | None, Parameter(metavar="NAME")] = None,
    follow: bool = False,
    json: bool = False,
    of: AskOptions = ALL,
) -> None:
    """List the open connections of the processes of this machine.

    Parameters
    ----------
    service
        List only connections of this service.
    client
        List only connections of clients in this network.
    provider
        List only connections that this provider has.
    follow
        List them again every 2 seconds, until Ctrl-C.
    json
        Print a JSON array, one object per process, as docs/status.md describes; with --follow one per line.
    """
    conditions = _conditions(service, client, provider)
    before = _look(of, conditions)
    time.sleep(RATE_S)

    def frame() -> None:
        nonlocal before
        looks = _look(of, conditions)
        rows = [_with_rates(look, before) for look in looks]
        before = looks
        if json:
            documents = [{"process": look.who, "streams": found} for look, found in zip(looks, rows, strict=True)]
            print(dumps(documents, indent=None if follow else 2))
            return
        if follow:
            clear()
        for look, found in zip(looks, rows, strict=True):
            print(f"{look.who}: {counted(len(found), 'open connection')}")
            if found:
                print(columns([HEADER, *(tuple(map(printable, _cells(row))) for row in found)]))

    if follow:
        repeat(frame)
    frame()


def end(
    *ids: str,
    service: Annotated[str | None, Parameter(metavar="NAME")] = None,
    client: Annotated[str | None, Parameter(metavar="CIDR")] = None,
    provider: Annotated[str | None, Parameter(metavar="NAME")] = None,
    of: AskOptions = ALL,
) -> None:
    """End connections, with a reset on both sides.

    Parameters
    ----------
    ids
        End the connections with these ids, which `goreprox streams` shows.
    service
        End connections of this service.
    client
        End connections of clients in this network.
    provider
        End connections that this provider has.
    """
    conditions = _conditions(service, client, provider)
    if not ids and not conditions:
        raise ConfigError("end: give ids, which `goreprox streams` shows, or --service, --client or --provider")
    count = 0
    unknown = set(ids)
    for first in range(0, max(len(ids), 1), IDS):
        options = conditions | ({"ids": list(ids[first : first + IDS])} if ids else {})
        for reply in _ask(of, "end", options):
            match reply.result:
                case {"ended": int(ended), "ids": [*known]}:
                    count += ended
                    unknown -= {each for each in known if isinstance(each, str)}
    print(f"ended {counted(count, 'connection')}")
    if unknown:
        raise ControlError(f"not open: {', '.join(sorted(unknown))}; `goreprox streams` shows those that are")


def _conditions(service: str | None, client: str | None, provider: str | None) -> dict[str, object]:
    if client is not None:
        client = str(parse_network("client", client))
    given = {"service": service, "client": client, "provider": provider}
    return {name: value for name, value in given.items() if value is not None}


def _ask(of: AskOptions, command: str, options: Mapping[str, object]) -> list[Reply]:
    replies = ask_all(of.directories, command, roles=of.roles, name=of.name, deadline_s=LIST_S, options=options)
    if problems := [reply.problem for reply in replies if reply.problem is not None]:
        raise ControlError("; ".join(problems))
    return replies


def _look(of: AskOptions, conditions: Mapping[str, object]) -> list[Look]:
    return [_looked(reply) for reply in _ask(of, "streams", conditions)]


def _looked(reply: Reply) -> Look:
    rows: dict[str, Row] = {}
    for page in reply.pages:
        match page:
            case {"at_s": float(at_s), "streams": [*streams]}:
                rows |= {str(row["id"]): {**row, "at_s": at_s} for row in streams}
    return Look(reply.who, rows)


def _with_rates(look: Look, before: Sequence[Look]) -> list[Row]:
    """Add bytes per second since the earlier look; of a new stream, since it was opened."""
    earlier = next((each.rows for each in before if each.who == look.who), {})
    rows = []
    for key, row in look.rows.items():
        then = earlier.get(key, NOTHING)
        time_s = row["at_s"] - then["at_s"] if then else row["open_s"]
        rates = {
            f"{way}_bytes_per_s": round((row[f"{way}_bytes"] - then.get(f"{way}_bytes", 0)) / max(time_s, 0.001))
            for way in ("sent", "received")
        }
        rows.append({name: value for name, value in row.items() if name != "at_s"} | rates)
    return rows


def _cells(row: Row) -> tuple[str, ...]:
    more = (f"{name} {row[name]}" for name in ("target", "host", "token", "certificate") if name in row)
    return (
        str(row["id"]),
        str(row["client"]),
        str(row["service"]),
        str(row["peer"] or ""),
        str(row["state"]),
        duration(row["open_s"]),
        *(decimal(row[f"{way}_bytes"]) for way in ("sent", "received")),
        *(f"{decimal(row[f'{way}_bytes_per_s'])}/s" for way in ("sent", "received")),
        str(row["outages"]),
        ", ".join(more),
    )
