"""Checks brokers from outside, as a peer with the same key that has no sessions: from the name to who is there.

It takes no lock and no incarnation of a process, so one that runs with this configuration notices nothing.
"""

import asyncio
import enum
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from brokers import (
    OF_PROXY,
    Buffer,
    Carrier,
    Cause,
    Finding,
    Link,
    LinkSecurity,
    PeerInfo,
    PeerName,
    Role,
    SocketAddress,
    Timings,
    addresses,
    probe,
)
from goreprox.config.addresses import Address
from goreprox.config.names import default_name
from goreprox.config.proxy import ProxyConfig
from goreprox.config.published import is_published
from goreprox.errors import StartError
from goreprox.net.link_tls import LinkTls, Trust, tls_of
from goreprox.net.proxy_client import ProxyClient, client_of
from goreprox.process.instance import INCARNATION_BYTES
from goreprox.process.log import counted, listing, quoted
from goreprox.process.machine import in_container
from goreprox.protocol.limits import VERSION, VERSION_LEAST
from goreprox.roles.cluster import advice as nats_advice
from goreprox.roles.cluster import carrier, check_installed
from goreprox.roles.member import advice
from goreprox.tunnel.attributes import machine_of, may_open, process_of, services_of, who
from goreprox.tunnel.peer import common_version

RESOLVE_S: Final = 10.0
"""The C library asks two name servers for 5 s each (resolv.conf(5))."""
MAX_ADDRESSES: Final = 16
"""Addresses of one broker that are checked; a DNS message has room for thousands."""
VERDICT_S: Final = 20.0
"""A handshake may take 5 s, and three have to fail until a key is blamed."""
LIST_S: Final = 3.0
"""The peer list follows the welcome at once; of 2,048 peers it has 8 MiB."""
LINGER_S: Final = 0.5
"""For the goodbye to the broker."""


class State(enum.Enum):
    """The outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    """Something is not as it could be, but the role works."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Result:
    """One check."""

    check: str
    """Which: one of those in docs/configuration.md."""
    subject: str
    """What was checked."""
    state: State
    message: str
    remedy: str | None = None
    """What to do about it."""


@dataclass(frozen=True, slots=True)
class Joining:
    """As whom brokers are joined, and what is expected there."""

    role: Role
    name: str
    security: LinkSecurity | None
    services: Sequence[str]
    link_timeout_s: float
    proxies: ProxyConfig

    @property
    def broker(self) -> str:
        """What brokers are called; also the option that names them."""
        return "broker" if self.role is Role.EDGE else "server"


class _PeerList:
    """The peers that a broker reports (brokers.Receiver)."""

    def __init__(self, changed: asyncio.Event) -> None:
        self.peers: dict[bytes, PeerInfo] = {}
        self._changed = changed

    def carrier_up(self, carrier: Carrier) -> None:
        """Peers follow."""

    def carrier_down(self, carrier: Carrier, reason: str) -> None:
        """Keep what is known: it is about to be reported."""

    def peer_up(self, carrier: Carrier, peer: PeerInfo) -> None:
        """Add a peer, unless it has no sessions, as we."""
        if "protocol" in peer.attributes:
            self.peers[peer.name.id] = peer
            self._changed.set()

    def peer_down(self, carrier: Carrier, peer_id: bytes, reason: str) -> None:
        """Forget a peer."""
        self.peers.pop(peer_id, None)

    def message(self, carrier: Carrier, peer_id: bytes, frames: list[Buffer]) -> None:
        """Ignore it: there are no sessions."""


async def check_brokers(addresses: Sequence[Address], joining: Joining) -> list[Result]:
    """Check each broker, then who is connected to those that are well."""
    checks = (_check_nats if address.nats else _check_broker for address in addresses)
    found = await asyncio.gather(*(check(address, joining) for check, address in zip(checks, addresses, strict=True)))
    results = [result for checked, _ in found for result in checked]
    lists = [peers for _, peers in found if peers is not None]
    if lists:
        peers = {peer_id: peer for each in lists for peer_id, peer in each.items()}
        results += _protocols(list(peers.values())) + _services(list(peers.values()), joining)
    return results


async def _check_nats(address: Address, joining: Joining) -> tuple[list[Result], Mapping[bytes, PeerInfo] | None]:
    """Connect to a NATS server, and look who is there."""
    subject = f"{joining.broker} {address}"
    changed = asyncio.Event()
    peer_list = _PeerList(changed)
    causes: list[Cause] = []
    try:
        check_installed((address,))
        made = carrier(
            PeerName(joining.role, joining.name, secrets.token_bytes(INCARNATION_BYTES)),
            _attributes(joining),
            (address,),
            peer_list,
            security=joining.security,
            trust=Trust(joining.proxies.ca, (address,)),
            creds=joining.proxies.nats_creds,
            timings=Timings(link_timeout_s=joining.link_timeout_s),
            changed=changed.set,
            advise=causes.append,
        )
    except StartError as exc:
        message, _, todo = str(exc).partition("; ")  # the form of `goreprox.errors`
        return [Result("nats", subject, State.FAILED, message, todo or None)], None
    made.start()
    try:
        await _until(changed, lambda: made.up or made.problem is not None, within_s=VERDICT_S)
        if not made.up:
            problem = made.problem or f"no verdict within {VERDICT_S:g} s"
            remedy = nats_advice(causes[-1]) if causes else None
            return [Result("nats", subject, State.FAILED, quoted(problem, 512), remedy)], None
        await _until(changed, lambda: _all_served(peer_list.peers.values(), joining), within_s=LIST_S)
        keys = "without keys" if joining.security is None else "keys accepted"
        text = f"{keys}; {joining.role} {joining.name} is welcome"
        return [Result("nats", subject, State.OK, text)], peer_list.peers
    finally:
        await made.close(linger_s=LINGER_S)


def _attributes(joining: Joining) -> dict[str, object]:
    return {"services": list(joining.services), **who("doctor", default_name())}


async def _check_broker(address: Address, joining: Joining) -> tuple[list[Result], Mapping[bytes, PeerInfo] | None]:
    """Return the results, and the peers; None: no address of the broker has accepted us."""
    subject, host = f"{joining.broker} {address}", address.host or "127.0.0.1"
    proxy = client_of(joining.proxies, address)
    try:
        tls = tls_of(address, Trust(joining.proxies.ca, (address,)))
    except StartError as exc:
        message, _, todo = str(exc).partition("; ")  # the form of `goreprox.errors`
        return [Result("tls", subject, State.FAILED, message, todo or None)], None
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = (await addresses(host, address.port, proxy))[:MAX_ADDRESSES]
    except (OSError, UnicodeError) as exc:  # TimeoutError is an OSError
        why = unresolved(exc)
        remedy = advice(joining.role, address.port)(Cause.UNRESOLVED)
        return [Result("resolve", subject, State.FAILED, f"{host} cannot be resolved: {why}", remedy)], None
    checked = await asyncio.gather(*(_check_address(each, address.port, joining, proxy, tls) for each in found))
    well = [peers for _, peers in checked if peers is not None]
    where = ", ".join(str(sockaddr[0]) for _, sockaddr in found)
    results = [Result("resolve", subject, State.OK, where)] if proxy is None or not proxy.resolves else []
    results += [_lenient(result) if well else result for each, _ in checked for result in each]
    return results, {peer_id: peer for peers in well for peer_id, peer in peers.items()} if well else None


def unresolved(exc: OSError | UnicodeError) -> str:
    """Return why a name cannot be resolved."""
    if isinstance(exc, TimeoutError):
        return f"no name server responds within {RESOLVE_S:g} s"
    return exc.strerror or str(exc) if isinstance(exc, OSError) else "it is not a valid host name"


def _lenient(result: Result) -> Result:
    """Return a result of one address where another one is well: only the first attempt takes longer."""
    return replace(result, state=State.WARNING) if result.state is State.FAILED else result


async def _check_address(
    address: SocketAddress, port: int, joining: Joining, proxy: ProxyClient | None, tls: LinkTls | None
) -> tuple[list[Result], Mapping[bytes, PeerInfo] | None]:
    at = Address(str(address[1][0]), port, tls=tls is not None)
    finding = await probe(address, proxy, tls)
    results = [] if proxy is None else [proxied(finding, proxy, advice(joining.role, port))]
    if finding.cause not in OF_PROXY:
        results += probed(finding, at, advice(joining.role, port))
    if results[-1].state is not State.OK:
        return results, None
    result, peers = await _join(at, joining, proxy, tls)
    return [*results, result], peers


def proxied(finding: Finding, proxy: ProxyClient, remedies: Callable[[Cause], str | None]) -> Result:
    """Return what a probe says about the proxy that it went through."""
    if finding.cause in OF_PROXY:
        return Result("proxy", str(proxy), State.FAILED, finding.detail, remedies(finding.cause))
    return Result("proxy", str(proxy), State.OK, "it takes our requests")


def probed(finding: Finding, at: Address, remedies: Callable[[Cause], str | None]) -> list[Result]:
    """Return what a probe says about the connection and about who responds."""
    remedy = remedies(finding.cause)
    connected = Result("tcp", str(replace(at, tls=False)), State.OK, "connected")
    match finding.cause:
        case Cause.UNREACHABLE:
            if at.is_loopback and in_container():
                remedy = f"{remedy}; {at.host} is this container itself: give the address of the other machine"
            return [Result("tcp", connected.subject, State.FAILED, finding.detail, remedy)]
        case Cause.TLS | Cause.CERTIFICATE:
            return [connected, Result("tls", str(at), State.FAILED, finding.detail, remedy)]
        case Cause.CURVE | Cause.PLAINTEXT:
            keys = "with keys" if finding.cause is Cause.CURVE else "without keys"
            zmtp = Result("zmtp", str(at), State.OK, f"a broker {keys}")
        case _:
            zmtp = Result("zmtp", str(at), State.FAILED, f"no broker: {finding.detail}", remedy)
    shaken = [Result("tls", str(at), State.OK, "its certificate is accepted")] if at.tls else []
    return [connected, *shaken, zmtp]


async def _join(
    at: Address, joining: Joining, proxy: ProxyClient | None, tls: LinkTls | None
) -> tuple[Result, Mapping[bytes, PeerInfo] | None]:
    """Join the broker at one address for a moment."""
    changed = asyncio.Event()
    peer_list = _PeerList(changed)
    causes: list[Cause] = []
    link = Link(
        PeerName(joining.role, joining.name, secrets.token_bytes(INCARNATION_BYTES)),
        _attributes(joining),
        str(at.host),
        at.port,
        peer_list,
        timings=Timings(link_timeout_s=joining.link_timeout_s),
        security=joining.security,
        called=joining.broker,
        advise=causes.append,
        changed=changed.set,
        proxy=proxy,
        tls=tls,
    )
    link.start()
    try:
        await _until(changed, lambda: link.up or link.problem is not None, within_s=VERDICT_S)
        if not link.up:
            cause = causes[-1] if causes else Cause.SLOW
            problem = link.problem or f"no verdict within {VERDICT_S:g} s"
            return _rejected(at, joining, cause, problem), None
        await _until(changed, lambda: _all_served(peer_list.peers.values(), joining), within_s=LIST_S)
        keys = "without keys" if joining.security is None else "keys accepted"
        return Result("join", str(at), State.OK, f"{keys}; {joining.role} {joining.name} is welcome"), peer_list.peers
    finally:
        await link.close(linger_s=LINGER_S)


async def _until(changed: asyncio.Event, condition: Callable[[], bool], *, within_s: float) -> None:
    """Wait for a condition, which is checked at each change."""
    try:
        async with asyncio.timeout(within_s):
            while not condition():
                changed.clear()
                await changed.wait()
    except TimeoutError:
        pass


def _rejected(at: Address, joining: Joining, cause: Cause, problem: str) -> Result:
    """Say which key is refused; no clock matters, since keys do not expire."""
    name, security = joining.name, joining.security
    remedy = advice(joining.role, at.port)(cause)
    match cause:
        case Cause.UNKNOWN_KEY if security is not None:
            problem += f"; it is that of {joining.role} {name}, {security.keys.public.decode()}"
            remedy = (
                f"compare it with `goreprox keys show {name}` on the {joining.broker}, and get a new join string there"
            )
        case Cause.OTHER_KEY if security is not None:
            problem += f": {' or '.join(key.decode() for key in security.brokers)}"
        case _:
            pass
    return Result("join", str(at), State.FAILED, quoted(problem, 512), remedy)


def _all_served(peers: Iterable[PeerInfo], joining: Joining) -> bool:
    found = list(peers)
    return all(any(_has(peer, service) for peer in found) for service in joining.services)


def _has(peer: PeerInfo, service: str) -> bool:
    """Return whether a provider offers a service, or an edge has clients for it."""
    if is_published(service):
        return may_open(peer.attributes, service)
    return service in services_of(peer.attributes)


def _protocols(peers: Sequence[PeerInfo]) -> list[Result]:
    """Compare the versions of sessions, which only the two ends of one have to agree on."""
    results = []
    for peer in peers:
        theirs = peer.attributes.get("protocol")
        if common_version(theirs) is None:
            text = quoted(f"speaks protocol versions {theirs}, this version {VERSION_LEAST} to {VERSION}")
            results.append(Result("protocol", _title(peer), State.FAILED, text, "upgrade the older one"))
    if peers and not results:
        text = f"{counted(len(peers), 'peer')} with a version in common"
        results.append(Result("protocol", f"versions {VERSION_LEAST} to {VERSION}", State.OK, text))
    return results


def _services(peers: Sequence[PeerInfo], joining: Joining) -> list[Result]:
    """Find out which services have somebody at their other end."""
    is_edge = joining.role is Role.EDGE
    others, verb = ("provider", "offered") if is_edge else ("edge", "listened for")
    known = {service for peer in peers for service in services_of(peer.attributes)}
    results = []
    for service in joining.services:
        serving = [_title(peer) for peer in peers if _has(peer, service)]
        if serving:
            result = Result("service", service, State.OK, f"{verb} by {listing(serving)}")
        elif not peers:
            remedy = f"start one, or look at its `goreprox doctor {others}`"
            result = Result("service", service, State.FAILED, f"no {others} is connected", remedy)
        else:
            remedy = f"is one of the names misspelt? {_example(service, joining.role)}"
            text = f"no {others} has this service; {verb}: {listing(known) or 'none'}"
            result = Result("service", service, State.FAILED, text, remedy)
        results.append(result)
    return results


def _example(service: str, role: Role) -> str:
    if role is Role.EDGE:
        return f"providers offer it by `goreprox provider {service}=PORT`"
    if is_published(service):
        return "the server or edge opens hosts by `--listen http://80`, and ports by `--publish-ports`"
    return f"the server or edge listens for it by `--listen PORT={service}`"


def _title(peer: PeerInfo) -> str:
    machine = machine_of(peer.attributes)
    where = f" on {quoted(machine)}" if machine not in (None, peer.name.name) else ""
    return f"{process_of(peer.attributes) or peer.name.role} {peer.name.name}{where}"
