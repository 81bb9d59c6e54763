"""Which published names an edge serves, and for whom: one rule, so that all edges and workers decide alike.

Grants decide, not time. What the edge itself listens for or routes comes first; then an exact host before a wildcard, a
port that was asked for before one that was chosen, and then the lower public key.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from goreprox.config.addresses import Address
from goreprox.config.published import MAX_EDGE_NAMES, MAX_NAMES, PRIVILEGED, Ports, PublishedName
from goreprox.config.routes import Routes

MAX_CANDIDATES: Final = 1024
"""Ports that one is chosen of; more that are allowed are not looked at. A choice takes 1 ms then, so a provider with 64
names, which may all be new, takes 64 ms."""
MAX_CHOICES: Final = 4 * MAX_EDGE_NAMES
"""Choices that are remembered."""


class Claim(NamedTuple):
    """A name that a provider asks for, and what its broker says of its key."""

    name: PublishedName
    key: bytes
    """The public key; empty without keys."""
    ports: tuple[Ports, ...]
    """Those that the key may have."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What an edge opens for publishing."""

    routes: Routes | None = None
    """Its own, which win."""
    web: bool = False
    """Whether an HTTP listener serves published hosts."""
    tls: bool = False
    """Whether a listener passes TLS on."""
    terminates: Callable[[str], bool] = lambda _: False
    """Returns whether that has a certificate for a host, or for hosts, and ends TLS itself."""
    ports: tuple[Ports, ...] = ()
    listeners: tuple[Address, ...] = ()
    """Its own, which win."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Which names are served."""

    hosts: dict[str, PublishedName] = field(default_factory=dict)
    """By host or pattern, for HTTP."""
    tls_hosts: dict[str, PublishedName] = field(default_factory=dict)
    """The same for TLS that is passed on."""
    ports: dict[int, PublishedName] = field(default_factory=dict)
    problems: dict[PublishedName, str] = field(default_factory=dict)
    """What is wrong with names: why they are not served, or not for all hosts."""


def settle(claims: Iterable[Claim], opening: Opening) -> Settled:
    """Decide which of the claims an edge serves."""
    settled = Settled()
    counts: dict[str, int] = {}
    for number, claim in enumerate(sorted(claims, key=_rank)):
        name = claim.name
        counts[name.owner] = counts.get(name.owner, 0) + 1
        if counts[name.owner] > MAX_NAMES:
            settled.problems[name] = f"{name.owner} has {MAX_NAMES} names already, all its providers together"
        elif number >= MAX_EDGE_NAMES:
            settled.problems[name] = f"this edge has {MAX_EDGE_NAMES:,} names already"
        elif name.host is not None:
            _settle_host(settled, claim, name.host, opening)
        else:
            _settle_port(settled, claim, opening)
    for hosts in (settled.hosts, settled.tls_hosts):
        for host, name in hosts.items():
            for pattern in _above(host):
                wider = hosts.get(pattern)
                if wider is not None and wider.owner != name.owner:
                    settled.problems.setdefault(wider, f"{name.owner} has {host}, which is more exact")
    return settled


def _rank(claim: Claim) -> tuple[bool, bytes, str]:
    return claim.name.service is not None, claim.key, claim.name.text


def _settle_host(settled: Settled, claim: Claim, host: str, opening: Opening) -> None:
    hosts = settled.tls_hosts if claim.name.tls else settled.hosts
    holder = hosts.get(host)
    if claim.name.tls and not opening.tls:
        problem = "this edge has no sni:// port"
    elif claim.name.tls and opening.terminates(host):
        problem = "this edge has a certificate for it, and ends TLS itself"
    elif not claim.name.tls and not opening.web:
        problem = "this edge has no http:// or https:// port for published hosts"
    elif opening.routes is not None and opening.routes.find(host.encode()) is not None:
        problem = "a --route of this edge has it"
    elif holder is not None:
        problem = _taken(holder, claim)
    else:
        hosts[host] = claim.name
        return
    settled.problems[claim.name] = problem


def _settle_port(settled: Settled, claim: Claim, opening: Opening) -> None:
    name, port = claim.name, claim.name.port
    if name.service is not None:
        port = chosen_port(claim.key, name.service, claim.ports, opening.ports)
    if port is None:
        problem = "its key has no port that this edge opens; --publish-ports opens ports"
    elif not any(port in ports for ports in claim.ports):
        problem = f"its key does not have port {port}"
    elif not any(port in ports for ports in opening.ports):
        problem = f"this edge does not open port {port}; --publish-ports opens ports"
    elif any(address.overlaps(Address(None, port)) for address in opening.listeners):
        problem = f"this edge itself listens at port {port}"
    elif port in settled.ports:
        problem = f"port {port}: {_taken(settled.ports[port], claim)}"
    else:
        settled.ports[port] = name
        return
    settled.problems[name] = problem


def _taken(holder: PublishedName, claim: Claim) -> str:
    if holder.owner == claim.name.owner:
        return f"{holder.url} of the same key has it; ask for another one"
    if holder.port != claim.name.port:
        return f"{holder.owner} has it, which asked for this port"
    return f"{holder.owner} has it, whose {'public key' if claim.key else 'name'} is the lower one"


def _above(host: str) -> Iterable[str]:
    """Yield the patterns that cover a host, or another pattern."""
    name = host.removeprefix("*.").partition(".")[2]
    while name:
        yield f"*.{name}"
        name = name.partition(".")[2]


@functools.lru_cache(MAX_CHOICES)
def chosen_port(key: bytes, service: str, granted: tuple[Ports, ...], opened: tuple[Ports, ...]) -> int | None:
    """Return a port for a service, the same at every edge that opens the same ports; None if none is allowed.

    By rendezvous hashing: if other ports are allowed or no longer so, no other service has to move.
    """
    common = (
        range(max(one.first, other.first, PRIVILEGED), min(one.last, other.last) + 1)
        for one in sorted(granted)
        for other in sorted(opened)
    )
    candidates = itertools.islice(itertools.chain.from_iterable(common), MAX_CANDIDATES)
    return max(candidates, key=lambda port: _weight(key, service, port), default=None)


def _weight(key: bytes, service: str, port: int) -> bytes:
    return hashlib.blake2b(b"%d %s" % (port, service.encode()), key=key, digest_size=8).digest()
