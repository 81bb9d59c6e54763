"""The published names of an edge: they come and go with their providers, which are told where clients find them.

All of it follows from the peer list and the configuration. So workers agree, and an upgrade in place hands nothing over
but the listening sockets.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from loguru import logger

from brokers import LimitedLog
from goreprox.config.published import GRANTED, MAX_NAMES, PUBLISHES, Ports, PublishedName, is_published
from goreprox.config.routes import Route, Routes
from goreprox.errors import ConfigError
from goreprox.process.clock import clock
from goreprox.roles.publish_rules import Claim, Opening, Settled, settle
from goreprox.status.document import PublishedStatus
from goreprox.tunnel.attributes import Attributes, services_of
from goreprox.tunnel.peer import Peer

MAX_KEY_BYTES: Final = 40
"""Of a public key, in Z85."""
MAX_RANGES: Final = 32
DIFFER_S: Final = 2.0
"""Brokers notice a change of keys within a second: longer than that they have no reason to differ."""
RETRY_S: Final = 5.0
"""Between two attempts to listen at a port that is taken."""


def claims_of(peer: Peer) -> tuple[Claim, ...]:
    """Return what a provider asks for; nothing of what is malformed, nor without a broker that vouches for its key."""
    attributes = peer.info.attributes
    match attributes.get(GRANTED):
        case [bytes(key), [*ranges]] if len(key) <= MAX_KEY_BYTES and len(ranges) <= MAX_RANGES:
            ports = tuple(each for each in map(_range, ranges) if each is not None)
        case _:
            return ()
    texts = [service for service in services_of(attributes) if is_published(service)]
    names = dict.fromkeys(_name(text, peer.info.name.name) for text in texts[:MAX_NAMES])
    return tuple(Claim(name, key, ports) for name in names if name is not None)


def _range(item: object) -> Ports | None:
    match item:
        case [int(first), int(last)] if 1 <= first <= last < 1 << 16:
            return Ports(first, last)
    return None


def _name(text: str, owner: str) -> PublishedName | None:
    try:
        name = PublishedName.parse(text)
    except ConfigError:
        return None
    return name if name.owner == owner else None


@dataclass(slots=True)
class _Provider:
    """A provider that publishes."""

    peer: Peer
    attributes: Attributes
    claims: tuple[Claim, ...]
    until: float | None = None
    """How long its names are kept, as it cannot be reached."""
    epoch: int = 0
    """Of the session in which it was told."""
    told: dict[PublishedName, tuple[str, str]] = field(default_factory=dict)


@dataclass(slots=True)
class _Held:
    """A name that a provider asks for, or has asked for."""

    claim: Claim
    until: float | None = None
    """When it is dropped, as no provider asks for it any more."""


class Publication:
    """Owns the names. Belongs to one event loop."""

    def __init__(
        self,
        opening: Opening,
        *,
        trusted: bool,
        grace_s: float,
        listen: Callable[[Collection[int]], Mapping[int, str]],
        at: Callable[[PublishedName, int | None], str],
    ) -> None:
        """Serve what `opening` allows, and for `grace_s` what no provider asks for any more.

        `listen` has the edge accept clients at these ports and at no others that are published; it returns why some
        cannot be listened at. `at` returns where clients find a name, at a port if it is one. Where no broker with keys
        says that names may be served, a `trusted` edge does: one without keys, or in the broker's own process.
        """
        self._trusted = trusted
        self._opening = opening
        self._grace_s = grace_s
        self._listen = listen
        self._at = at
        self._providers: dict[bytes, _Provider] = {}
        self._held: dict[PublishedName, _Held] = {}
        self._settled = Settled()
        self._routes = self._tls_routes = Routes(())
        self._failed: Mapping[int, str] = {}
        self._logged: dict[PublishedName, tuple[str, str]] = {}
        self._log = LimitedLog()
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.TimerHandle | None = None
        self._took_s = 0.0
        """How long it took to settle names last. With 1,024 providers of 64 names each that may be 0.2 s, so at most
        a tenth of the time is for it."""
        self._timer: asyncio.TimerHandle | None = None
        self._comparing: asyncio.TimerHandle | None = None
        self.hosts_changed: Callable[[], None] = lambda: None
        """Called once other hosts, or ports, are served; to be set before."""

    def reconfigure(self, opening: Opening, *, grace_s: float) -> None:
        """Open other things for publishing, from the next turn of the loop on."""
        self._opening, self._grace_s = opening, grace_s
        self._settle_soon()

    @property
    def attributes(self) -> dict[str, object]:
        """What the peer list says: that published names are served, if anything is open for them."""
        is_open = self._opening.web or self._opening.tls or bool(self._opening.ports)
        return dict.fromkeys((PUBLISHES, GRANTED)[: 1 + self._trusted], True) if is_open else {}

    # What clients ask for.

    @property
    def hosts(self) -> Iterator[tuple[str, str]]:
        """The hosts and patterns that are served, each with whose it is; empty where no key says whose."""
        for host, name in self._settled.hosts.items():
            held = self._held.get(name)  # none if its key was revoked in this turn of the loop
            yield host, name.owner if held is not None and held.claim.key else ""

    def service_of_host(self, host: bytes) -> str | None:
        """Return the service that a host is published for, ignoring port and case; None if it is not."""
        return self._routes.find(host)

    def service_of_tls(self, host: bytes) -> str | None:
        """Return the service that a host is published for as one whose TLS is passed on; None if it is not."""
        return self._tls_routes.find(host)

    def service_of_port(self, port: int) -> str | None:
        """Return the service that a port is published for; None if it is not."""
        name = self._settled.ports.get(port)
        return None if name is None else name.text

    # Providers.

    def update(self, peer: Peer) -> None:
        """Take note of what a provider is and asks for now. One whose key was revoked loses its names at once."""
        known = self._providers.get(peer.id)
        if known is None:
            if peer.gone or not (claims := claims_of(peer)):
                return
            known = self._providers[peer.id] = _Provider(peer, peer.info.attributes, claims)
        elif known.attributes is not peer.info.attributes:
            known.attributes, known.claims = peer.info.attributes, claims_of(peer)
        if self._comparing is None and _differ(peer):
            self._comparing = self._loop.call_later(DIFFER_S, self._compare)
        if peer.epochs:
            known.until = None
        elif known.until is None:
            known.until = clock() + self._grace_s
        if peer.gone:
            del self._providers[peer.id]
            if peer.revoked:
                for claim in known.claims:
                    self._held.pop(claim.name, None)
        self._settle_soon()

    def _compare(self) -> None:
        """Warn if brokers still say different things of a key."""
        self._comparing = None
        for provider in self._providers.values():
            if _differ(provider.peer):
                text = (
                    f"brokers differ in what the key of {provider.peer.title} may publish; copy `authorized/` of one "
                    f"to the others: {', '.join(carrier.label for carrier in provider.peer.granted)}"
                )
                self._log.say("grants_differ", text, peer=provider.peer.info.name.name)

    def _settle_soon(self) -> None:
        if self._turn is None:
            self._turn = self._loop.call_later(9 * self._took_s, self._settle)

    def _settle(self) -> None:
        self._turn = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = clock()
        self._hold(now)
        settled = settle((held.claim for held in self._held.values()), self._opening)
        if settled != self._settled:
            self._settled = settled
            self._routes, self._tls_routes = (
                Routes(Route(host, name.text) for host, name in hosts.items())
                for hosts in (settled.hosts, settled.tls_hosts)
            )
            self.hosts_changed()
        self._failed = self._listen(settled.ports)
        self._tell()
        dues = [held.until for held in self._held.values() if held.until is not None]
        if self._failed:
            dues.append(now + RETRY_S)
        self._took_s = clock() - now
        if dues:
            self._timer = self._loop.call_later(max(min(dues) - now, 0.001), self._settle)

    def _hold(self, now: float) -> None:
        """Keep a name for the grace once no provider asks for it. At most 64 of a key are kept, the latest."""
        asked: set[PublishedName] = set()
        for provider in self._providers.values():
            for claim in provider.claims:
                if provider.until is None:
                    asked.add(claim.name)
                    self._held.pop(claim.name, None)
                    self._held[claim.name] = _Held(claim)
                elif now < provider.until:
                    self._held.setdefault(claim.name, _Held(claim, provider.until))
        counts: dict[str, int] = {}
        for name, held in reversed(list(self._held.items())):
            counts[name.owner] = counts.get(name.owner, 0) + 1
            if name not in asked and held.until is None:
                held.until = now + self._grace_s
            if name not in asked and (counts[name.owner] > MAX_NAMES or (held.until or now) <= now):
                del self._held[name]

    # What providers are told.

    @property
    def status(self) -> dict[str, PublishedStatus]:
        """Where clients find each name, and what is wrong."""
        return {
            name.text: {"at": [at] if at else [], "problem": problem or None} for name, (at, problem) in self._all()
        }

    def _all(self) -> list[tuple[PublishedName, tuple[str, str]]]:
        """Return all names, each with where clients find it, and what is wrong; both may be empty."""
        ports = {name: port for port, name in self._settled.ports.items()}
        hosts = (*self._settled.hosts.values(), *self._settled.tls_hosts.values())
        served = {name: self._at(name, ports.get(name)) for name in (*hosts, *ports)}
        for name, port in ports.items():
            if port in self._failed:
                served[name] = ""
        failures = {name: self._failed[port] for name, port in ports.items() if port in self._failed}
        problems = self._settled.problems | failures
        return [(name, (served.get(name, ""), problems.get(name, ""))) for name in self._held]

    def _tell(self) -> None:
        """Log what has changed, and tell it to the providers that ask for the names."""
        now = dict(self._all())
        for name in self._logged.keys() - now.keys():
            text = f"{name.url} of {name.owner} is no longer served"
            logger.bind(event="unpublished", service=name.text).info("{}", text)
        for name, (at, problem) in now.items():
            if self._logged.get(name) == (at, problem):
                continue
            if at:
                logger.bind(event="published", service=name.text, at=at).info("serving {} for {}", at, name.owner)
            if problem:
                text = f"{name.url} of {name.owner} is {'not' if not at else 'partly'} served: {problem}"
                self._log.say("not_published", text, service=name.text, reason=problem)
        self._logged = now
        for provider in self._providers.values():
            session = provider.peer.session
            if not session.established:
                continue
            if provider.epoch != session.epochs.number:
                provider.epoch, provider.told = session.epochs.number, {}
            for claim in provider.claims:
                told = now.get(claim.name)
                if told is not None and provider.told.get(claim.name) != told:
                    provider.told[claim.name] = told
                    session.multiplexer.say_served(claim.name.text, *told)


def _differ(peer: Peer) -> bool:
    """Return whether brokers say different things of the key of a provider."""
    first, *others = peer.granted.values() or (None,)
    return any(other != first for other in others)
