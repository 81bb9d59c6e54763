"""The attributes by which processes describe themselves in the peer list: written for ourselves, read from peers.

What a peer announces may be false, malformed or missing: readers take what is well-formed and bounded, and
ignore the rest.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from goreprox.config.addresses import Address
from goreprox.config.defaults import MAX_WEIGHT, MIN_WEIGHT
from goreprox.config.published import GRANTED, PUBLISHES, is_published

Attributes = Mapping[str, object]

# A peer has 4 KiB for its attributes, 3 KiB of it for the names of services. The rest, with CBOR heads: protocol 14,
# weight 16, predecessor 29, acks 17, process 17, machine 75, and either targets and granted (410, 277), or publishes,
# granted, ports and shared (11, 9, 564, 224). The interest takes 44, for the broker alone.
MAX_TARGETS: Final = 100
HASH_BYTES: Final = 4
PORTS_BYTES: Final = 560
SHARED_BYTES: Final = 216
MAX_WORD: Final = 64
PUBLISHED: Final = "://"
"""Stands for all published names, which each edge that serves any of them has to know."""


class Port(NamedTuple):
    """An address at which an edge accepts clients of a service."""

    service: str
    scheme: str
    host: str
    """Empty for all addresses of the edge."""
    port: int

    def url(self, host: str) -> str:
        """Return it as a URL, at `host` if it is on all addresses."""
        return f"{self.scheme}://{Address(self.host or host, self.port)}"


def who(process: str, machine: str) -> dict[str, object]:
    """Announce the kind of process (server, edge, provider) and its machine."""
    return {"process": process, "machine": machine}


def targets(addresses: Sequence[str]) -> dict[str, object]:
    """Announce short hashes of the targets' addresses, in the order of our services, so that differences show."""
    hashes = [hashlib.blake2b(each.encode(), digest_size=HASH_BYTES).digest() for each in addresses[:MAX_TARGETS]]
    return {"targets": b"".join(hashes)}


def ports(where: Iterable[Port]) -> dict[str, object]:
    """Announce where we accept clients, as far as there is room."""
    return {"ports": _within(PORTS_BYTES, ((list(each), len(each.service) + len(each.host) + 16) for each in where))}


def shared(services: Iterable[str]) -> dict[str, object]:
    """Announce the services that several providers offer with different targets, as far as there is room."""
    return {"shared": _within(SHARED_BYTES, ((name, len(name) + 2) for name in services))}


def _within(most: int, sized: Iterable[tuple[object, int]]) -> list[object]:
    chosen: list[object] = []
    for value, size in sized:
        most -= size
        if most < 0:
            break
        chosen.append(value)
    return chosen


def services_of(attributes: Attributes) -> list[str]:
    """Return the services that a provider offers, or an edge accepts clients for."""
    return _words(attributes.get("services"))


def interests(attributes: Attributes, more: Iterable[str] = ()) -> list[str]:
    """Return for which names a peer hears of others: services, `more` of them, and one name for all published ones."""
    names = [PUBLISHED if is_published(service) else service for service in (*services_of(attributes), *more)]
    return [*names, PUBLISHED] if attributes.get(PUBLISHES) is True else names


def may_open(attributes: Attributes, service: str) -> bool:
    """Return whether an edge may open streams of a service: those that it names, or any if it names none at all.

    The broker has checked the names against its key (keys.authority). A malformed list allows nothing. Published names
    are for every edge that serves them, as far as its broker says that it may.
    """
    if is_published(service):
        return attributes.get(PUBLISHES) is True and attributes.get(GRANTED) is True
    services = attributes.get("services")
    return "services" not in attributes or (isinstance(services, list) and service in services)


def shared_of(attributes: Attributes) -> list[str]:
    """Return the services that providers offer an edge with different targets."""
    return _words(attributes.get("shared"))


def weight_of(attributes: Attributes) -> float:
    """Return the weight of a provider; whatever is none counts as 1."""
    weight = attributes.get("weight")
    return float(weight) if isinstance(weight, int | float) and MIN_WEIGHT <= weight <= MAX_WEIGHT else 1.0


def process_of(attributes: Attributes) -> str | None:
    """Return the kind of a peer's process, if it is told."""
    return _word(attributes.get("process"))


def machine_of(attributes: Attributes) -> str | None:
    """Return the name of a peer's machine, if it is told."""
    return _word(attributes.get("machine"))


def targets_of(attributes: Attributes) -> dict[str, bytes]:
    """Return a hash of the target of each service, as far as they are told."""
    hashes = attributes.get("targets")
    if not isinstance(hashes, bytes):
        return {}
    pieces = [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
    return dict(zip(services_of(attributes), pieces, strict=False))


def ports_of(attributes: Attributes) -> list[Port]:
    """Return where an edge accepts clients, as far as it tells."""
    found = attributes.get("ports")
    wanted: list[Port] = []
    for each in found if isinstance(found, list) else ():
        match each:
            case [str(service), str(scheme), str(host), int(port)] if 0 < port < 1 << 16:
                wanted.append(Port(service, scheme, host, port))
    return wanted


def _words(value: object) -> list[str]:
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_WORD else None
