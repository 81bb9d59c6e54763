"""Summarises a status document in a few lines of 80 columns, the most wanted first: services, and who serves them.

Text from other machines is not escaped here, but where it is printed.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from rich.filesize import decimal

from goreprox.cli.columns import columns
from goreprox.process.log import counted
from goreprox.status.document import ConnectionStatus, Document, EndedStreamStatus, LinkStatus, PeerStatus

CONNECTIONS: Final = 10
ENDS: Final = 5
CERTIFICATES: Final = 5


def summary(document: Document) -> Iterator[str]:
    """Yield the lines; those below the first are indented."""
    yield _title(document)
    yield from _services(document)
    yield from _certificates(document)
    yield from _links(document)
    if (broker := document["broker"]) is not None and not document["services"]:
        yield from _indented(
            [(f"{each['role']} {each['name']} ({each['incarnation']})",) for each in broker["members"]]
        )
    yield from _connections(document)
    yield from _ends(document["ends"][-ENDS:])


def _title(document: Document) -> str:
    title = f"{document['role']} {document['name']}: up {duration(document['up_s'])}"
    if document["draining"]:
        title += ", draining"
    if (streams := document["streams"]) is None:
        return title
    facts = [counted(streams["open"], "connection")]
    for count, what in (
        (streams["waiting_clients"], "waiting for a provider"),
        (streams["dialing"], "connecting to a target"),
        (streams["refused_clients"], "refused so far"),
    ):
        if count:
            facts.append(f"{count:,} {what}")
    return f"{title}, {', '.join(facts)}"


def _services(document: Document) -> Iterator[str]:
    """Yield each service with those at its other end."""
    theirs = "edge" if document["role"] == "provider" else "provider"
    arrow = "->" if document["role"] == "provider" else "<-"
    published = document.get("published", {})
    known = {*document["services"], *published}
    for service, where in document["services"].items():
        yield f"  {service} {arrow} {', '.join(where)}{_health(document, service)}"
        peers = [peer for peer in document["peers"] if service in peer["services"]]
        nobody = [] if published and theirs == "edge" else [(f"no {theirs}",)]
        yield from _indented([_peer(peer) for peer in peers] or nobody, depth=4)
    for name, each in published.items():
        why = "" if each["problem"] is None else f": {each['problem']}"
        yield f"  {name} <- {', '.join(each['at']) or 'nowhere'}{why}"
        yield from _indented([_peer(peer) for peer in document["peers"] if name in peer["services"]], depth=4)
    others = [peer for peer in document["peers"] if not known.intersection(peer["services"])]
    if others:
        yield "  for other services"
        rows = [(*_peer(peer), ", ".join(peer["services"])) for peer in others]
        yield from _indented(rows, depth=4)


def _certificates(document: Document) -> Iterator[str]:
    """Yield what is wrong with certificates by ACME."""
    problems = [(host, each) for host, each in document.get("acme", {}).items() if each["problem"] is not None]
    for host, each in problems[:CERTIFICATES]:
        yield f"  certificate of {host}: {each['problem']}"
    if len(problems) > CERTIFICATES:
        yield f"  and {len(problems) - CERTIFICATES:,} more"


def _health(document: Document, service: str) -> str:
    """Return what the check of a service says against it, if anything."""
    check = document.get("checks", {}).get(service)
    if check is None or check["condition"] == "well":
        return ""
    why = "" if check["problem"] is None else f": {check['problem']}"
    return f", {check['condition']} {duration(check['since_s'])}{why}"


def _peer(peer: PeerStatus) -> tuple[str, ...]:
    name = f"{peer.get('process') or peer['role']} {peer['name']}"
    if (machine := peer.get("machine")) not in (None, peer["name"]):
        name += f" on {machine}"
    since = peer["down_s"] if peer["down_s"] is not None else peer.get("up_s")
    state = peer["state"] if since is None else f"{peer['state']} {duration(since)}"
    return f"{name} ({peer['incarnation']})", state, f"{peer['streams_open']:,} open"


def _links(document: Document) -> Iterator[str]:
    yield from _indented([_link(link) for link in document["links"]])


def _link(link: LinkStatus) -> tuple[str, ...]:
    since = link.get("since_s")
    state = link["state"] if since is None else f"{link['state']} {duration(since)}"
    way = f" by {proxy}" if (proxy := link.get("proxy")) else ""
    return f"link to {link['label']}{way}", f"{state}: {problem}" if (problem := link.get("problem")) else state


def _connections(document: Document) -> Iterator[str]:
    listed: Sequence[ConnectionStatus] = document.get("connections", ())[:CONNECTIONS]
    if not listed:
        return
    yield "  open connections, the latest first"
    rows = [("client", "service", "by way of", "open", "sent", "received")]
    for each in listed:
        age = "" if each["open_s"] is None else duration(each["open_s"])
        rows.append(
            (
                each["client"],
                each["service"],
                each["peer"] or "waiting",
                age,
                decimal(each["sent_bytes"]),
                decimal(each["received_bytes"]),
            )
        )
    yield from _indented(rows, depth=4)
    more = (document["streams"] or {"open": 0})["open"] - len(listed)
    if more > 0:
        yield f"    and {more:,} more"


def _ends(ends: Sequence[EndedStreamStatus]) -> Iterator[str]:
    if not ends:
        return
    yield "  ended last"
    rows = [
        (
            f"{datetime.fromisoformat(end['ended_at']).astimezone():%H:%M:%S}",
            end["client"],
            end["service"],
            end["reason"],
        )
        for end in reversed(ends)
    ]
    yield from _indented(rows, depth=4)


def _indented(rows: Sequence[tuple[str, ...]], *, depth: int = 2) -> Iterator[str]:
    for line in columns(rows).splitlines() if rows else ():
        yield " " * depth + line


def duration(seconds: float) -> str:
    """Return `1:02:03`."""
    return str(timedelta(seconds=round(seconds)))
