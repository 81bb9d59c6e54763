"""What a process announces of itself in the peer list, and how that is read.

Whatever a peer says may be false, foreign or missing: readers take what is well-formed and bounded, and nothing else.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from goreprox.config.addresses import Address
from goreprox.config.defaults import MAX_WEIGHT, MIN_WEIGHT

Attributes = Mapping[str, object]

# The peer list takes 4 KiB of each peer, 3 KiB of it for names of services. The rest, with heads of CBOR: protocol 14,
# weight 16, predecessor 29, acks 17, process 17, machine 75, and either targets (809), or ports and shared (604, 264).
MAX_TARGETS: Final = 200
HASH_BYTES: Final = 4
PORTS_BYTES: Final = 600
SHARED_BYTES: Final = 256
MAX_WORD: Final = 64


class Port(NamedTuple):
    """Where an edge accepts clients of a service."""

    service: str
    scheme: str
    host: str
    """Empty: all its addresses."""
    port: int

    def url(self, host: str) -> str:
        """Return it as clients write it, at `host` if it is on all addresses."""
        return f"{self.scheme}://{Address(self.host or host, self.port)}"


def who(process: str, machine: str) -> dict[str, object]:
    """Say which process we are (server, edge, provider), and on which machine."""
    return {"process": process, "machine": machine}


def targets(addresses: Sequence[str]) -> dict[str, object]:
    """Say, in the order of our services, enough of the targets' addresses to tell those that differ."""
    hashes = [hashlib.blake2b(each.encode(), digest_size=HASH_BYTES).digest() for each in addresses[:MAX_TARGETS]]
    return {"targets": b"".join(hashes)}


def ports(where: Iterable[Port]) -> dict[str, object]:
    """Say where clients come in, as far as there is room."""
    return {"ports": _within(PORTS_BYTES, ((list(each), len(each.service) + len(each.host) + 16) for each in where))}


def shared(services: Iterable[str]) -> dict[str, object]:
    """Say which services several providers offer with different targets, as far as there is room."""
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
    """Return what a provider offers, or an edge listens for."""
    return _words(attributes.get("services"))


def may_open(attributes: Attributes, service: str) -> bool:
    """Return whether an edge may open streams of a service: any if it does not say which it asks for.

    The broker has checked what it says against its key (keys.authority). A malformed list allows nothing.
    """
    services = attributes.get("services")
    return "services" not in attributes or (isinstance(services, list) and service in services)


def shared_of(attributes: Attributes) -> list[str]:
    """Return the services that an edge gets from several providers with different targets."""
    return _words(attributes.get("shared"))


def weight_of(attributes: Attributes) -> float:
    """Return the share that a provider asks for; whatever is no weight counts as 1."""
    weight = attributes.get("weight")
    return float(weight) if isinstance(weight, int | float) and MIN_WEIGHT <= weight <= MAX_WEIGHT else 1.0


def process_of(attributes: Attributes) -> str | None:
    """Return what a peer's process is called."""
    return _word(attributes.get("process"))


def machine_of(attributes: Attributes) -> str | None:
    """Return the name of a peer's machine."""
    return _word(attributes.get("machine"))


def targets_of(attributes: Attributes) -> dict[str, bytes]:
    """Return a hash of each service's target, as far as a provider tells."""
    hashes = attributes.get("targets")
    if not isinstance(hashes, bytes):
        return {}
    pieces = [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
    return dict(zip(services_of(attributes), pieces, strict=False))


def ports_of(attributes: Attributes) -> list[Port]:
    """Return where an edge says that clients come in."""
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
