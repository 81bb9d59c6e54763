"""Prints status documents: for people as lines or tables, for programs as JSON.

Names and reasons in them come from other machines, so sequences that control a terminal are escaped.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from goreprox.cli.summary import summary
from goreprox.process.log import printable
from goreprox.status.document import BrokerStatus, Document, EndedStreamStatus, PeerStatus, StreamsStatus

PIPE_COLUMNS: Final = 400
"""The width of lines that go to no terminal."""
_STYLES: Final = {"up": "green", "in use": "green", "down": "red", "failed": "red", "draining": "yellow"}


def show_json(documents: Sequence[Document], *, indent: int | None = 2) -> None:
    """Print the documents as one JSON array, in one line if `indent` is None."""
    print(json.dumps(documents, indent=indent))  # noqa: T201


def show(documents: Sequence[Document], *, verbose: bool = False) -> None:
    """Print the documents in a few lines each, or as tables: for a terminal in its width and colours, else plain."""
    is_terminal = sys.stdout.isatty()
    console = Console(
        highlight=False,
        markup=False,
        emoji=False,
        color_system="auto" if is_terminal else None,
        force_terminal=is_terminal,
        width=None if is_terminal else PIPE_COLUMNS,
    )
    for index, document in enumerate(documents):
        if index:
            console.print()
        (_show_all if verbose else _show)(console, document)


def _show(console: Console, document: Document) -> None:
    for number, line in enumerate(summary(document)):
        text = Text(printable(line), style="" if number else "bold", no_wrap=True, overflow="ellipsis")
        for word, style in _STYLES.items():
            text.highlight_words([f"  {word} "], style)
        console.print(text, no_wrap=True, overflow="ellipsis", crop=True)


def _show_all(console: Console, document: Document) -> None:
    title = f"{document['role']} {printable(document['name'])}"
    console.print(Text(title, style="bold"), end="")
    build = f" ({document['build']})" if "build" in document else ""
    console.print(
        f"  {document['incarnation']}, pid {document['pid']}, goreprox {document['version']}{build}, "
        f"up {_duration(document['up_s'])}{', draining' if document['draining'] else ''}"
    )
    for line in _facts(document):
        console.print(f"  {printable(line)}")
    for table in _tables(document):
        if table.row_count:
            console.print()
            console.print(table)


def _facts(document: Document) -> Iterable[str]:
    if document["ports"]:
        yield "listens: " + "; ".join(f"{who} {', '.join(map(str, p))}" for who, p in document["ports"].items())
    if document["services"]:
        yield "services: " + "; ".join(f"{s} = {', '.join(where)}" for s, where in document["services"].items())
    for service, check in document.get("checks", {}).items():
        why = "" if check["problem"] is None else f" ({check['problem']})"
        yield f"check: {service} {check['check']}, {check['condition']} for {_duration(check['since_s'])}{why}"
    for name, published in document.get("published", {}).items():
        why = "" if published["problem"] is None else f" ({published['problem']})"
        yield f"published: {name} at {', '.join(published['at']) or 'nowhere'}{why}"
    if (streams := document["streams"]) is not None:
        yield from _stream_facts(streams)
    if (broker := document["broker"]) is not None:
        yield f"broker: {broker['messages']} messages, {broker['dropped_messages']} dropped"


def _stream_facts(streams: StreamsStatus) -> Iterable[str]:
    yield (
        f"streams: {streams['open']} open of {streams['limit']}, {streams['total']} in total, "
        f"{streams['waiting_clients']} waiting, {streams['dialing']} dialing, {streams['refused_clients']} refused"
    )
    yield f"bytes: {decimal(streams['sent_bytes'])} sent, {decimal(streams['received_bytes'])} received"
    yield f"shared pool: {decimal(streams['borrowed_bytes'])} used of {decimal(streams['lendable_bytes'])}"


def _tables(document: Document) -> Iterable[Table]:
    rows = [(link["label"], link["state"], link.get("problem") or "") for link in document["links"]]
    yield _table("Links", ("broker", "state", "problem"), rows)
    yield _peers(document["peers"])
    yield _paths(document["peers"])
    if (broker := document["broker"]) is not None:
        yield _members(broker)
    yield _ends(document["ends"])


def _peers(peers: Sequence[PeerStatus]) -> Table:
    columns = ("peer", "id", "state", "epoch", "services", "#open", "#total", "#sent", "#received", "#queued")
    rows = [
        (
            f"{peer['role']} {peer['name']}",
            peer["incarnation"],
            peer["state"],
            str(peer["epoch"]),
            ", ".join(peer["services"]),
            str(peer["streams_open"]),
            str(peer["streams_total"]),
            decimal(peer["sent_bytes"]),
            decimal(peer["received_bytes"]),
            f"{peer['scheduled_streams']} + {peer['control_events']}",
            str(peer["outages"]),
            decimal(peer["replayed_bytes"]),
        )
        for peer in peers
    ]
    return _table("Peers", (*columns, "#outages", "#replayed"), rows)


def _paths(peers: Sequence[PeerStatus]) -> Table:
    rows = [
        (
            f"{peer['role']} {peer['name']}",
            path["label"],
            "in use" if path["in_use"] else "standby",
            str(path["fabric_epoch"]),
            "" if path["round_trip_s"] is None else f"{path['round_trip_s'] * 1000:.1f} ms",
        )
        for peer in peers
        for path in peer["paths"]
    ]
    return _table("Paths", ("peer", "over", "state", "#fabric epoch", "#round trip"), rows)


def _members(broker: BrokerStatus) -> Table:
    rows = [
        (
            f"{member['role']} {member['name']}",
            member["incarnation"],
            str(member["fabric_epoch"]),
            str(member["outbox_messages"]),
            decimal(member["outbox_bytes"]),
        )
        for member in broker["members"]
    ]
    return _table("Broker's peers", ("peer", "id", "#fabric epoch", "#outbox messages", "#outbox"), rows)


def _ends(ends: Sequence[EndedStreamStatus]) -> Table:
    rows = [
        (
            f"{datetime.fromisoformat(end['ended_at']).astimezone():%Y-%m-%d %H:%M:%S}",
            end["client"],
            end["service"],
            end["peer"] or "",
            decimal(end["sent_bytes"]),
            decimal(end["received_bytes"]),
            end["reason"],
        )
        for end in reversed(ends)
    ]
    return _table("Last ends", ("when", "client", "service", "peer", "#sent", "#received", "reason"), rows)


def _table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    """Make a table; columns that begin with `#` hold numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=True)
    for column in columns:
        table.add_column(column.removeprefix("#"), justify="right" if column[0] == "#" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell), style=_STYLES.get(cell, "")) for cell in row))
    return table


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
