"""Examines whether a role can do its work here: what it needs of this machine, its brokers, targets and services.

Nothing is started, created or kept, and a process that runs with this configuration notices nothing.
"""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Final

from brokers import Cause, Role, SocketAddress, probe, resolve
from goreprox.config.addresses import Address, Target, UnixPath
from goreprox.config.auth import AuthConfig, AuthUrl
from goreprox.config.defaults import MIB
from goreprox.config.roles import BrokerConfig, EdgeConfig, PeerConfig, ProviderConfig, ServerConfig
from goreprox.errors import ControlError, StartError
from goreprox.http.auth_service import AuthService
from goreprox.net.certificates import target_context
from goreprox.net.outgoing import UnreachableError
from goreprox.process.machine import memory_limit_bytes
from goreprox.roles import preflight
from goreprox.roles.broker_check import MAX_ADDRESSES, RESOLVE_S, Joining, Result, State, check_brokers, unresolved
from goreprox.roles.dial import advice
from goreprox.roles.examination import UnwellError
from goreprox.roles.examination import examine as examine_target
from goreprox.status.query import ask_all

Config = ServerConfig | EdgeConfig | BrokerConfig | ProviderConfig

# docs/operations.md, Sizing.
IDLE_BYTES: Final = 40 * MIB
TRANSIT_BYTES: Final = 24 * MIB
"""Of a process with connections, beside its --memory."""
FROZEN_BYTES: Final = 48 * MIB
"""Of a broker for one peer that does not read: its outbox of 16 MiB, and 32 MiB in flight to it."""
OWN_DESCRIPTORS: Final = 100
TLS_DESCRIPTORS: Final = 4
"""Of a broker for a peer whose link is within TLS: beside its own, the three that carry it to libzmq."""


def examine(config: Config) -> Iterator[Result]:
    """Yield the results of all checks, as each series of them is done."""
    yield from _start(config)
    yield _descriptors(config)
    yield from _memory(config)
    match config:
        case ProviderConfig():
            yield from asyncio.run(_of_provider(config))
        case EdgeConfig(clients=clients):
            yield from asyncio.run(check_brokers(config.brokers, _joining(config, Role.EDGE, clients.services)))
            yield from asyncio.run(_of_auth(clients.auth))
        case ServerConfig(clients=clients):
            yield from asyncio.run(_of_ports(config.peers, config.edges))
            yield from asyncio.run(_of_auth(clients.auth))
            yield from _of_running_server(config)
        case BrokerConfig():
            yield from asyncio.run(_of_ports(config.peers, config.edges))


def _joining(config: EdgeConfig | ProviderConfig, role: Role, services: tuple[str, ...]) -> Joining:
    process = config.process
    return Joining(role, process.own_name, config.security, services, process.link_timeout_s, config.proxy)


# This machine.


def _start(config: Config) -> Iterator[Result]:
    for subject, problem in preflight.steps(config):
        if problem is None:
            yield Result("start", subject, State.OK, "usable")
        else:
            message, _, remedy = str(problem).partition("; ")  # the form of `goreprox.errors`
            yield Result("start", subject, State.FAILED, message, remedy or None)


def _descriptors(config: Config) -> Result:
    clients = 0 if isinstance(config, BrokerConfig) else config.connections.max_connections
    peers = 0
    if isinstance(config, BrokerConfig | ServerConfig):
        within_tls = config.peers.providers.tls or (config.edges is not None and config.edges.tls)
        peers = config.peers.max_peers * (TLS_DESCRIPTORS if within_tls else 1)
    needed = clients + peers + OWN_DESCRIPTORS
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return Result("descriptors", f"{needed:,} needed", State.OK, "within the hard limit")
    option = "--max-peers" if isinstance(config, BrokerConfig) else "--max-connections"
    remedy = f"raise it (LimitNOFILE= in systemd, ulimit -Hn elsewhere), or lower {option}"
    return Result("descriptors", f"{needed:,} needed", State.FAILED, f"the hard limit is {limit:,}", remedy)


def _memory(config: Config) -> Iterator[Result]:
    needed = IDLE_BYTES
    if not isinstance(config, BrokerConfig):
        needed += TRANSIT_BYTES + config.connections.memory_bytes
    if isinstance(config, BrokerConfig | ServerConfig):
        needed += FROZEN_BYTES
    if isinstance(config, EdgeConfig):
        needed *= config.workers
    limit = memory_limit_bytes()
    subject = f"{needed // MIB:,} MiB needed"
    if limit is None:
        return
    if limit >= needed:
        yield Result("memory", subject, State.OK, f"{limit // MIB:,} MiB are allowed")
        return
    lower = "" if isinstance(config, BrokerConfig) else ", or lower --memory"
    remedy = f"raise the limit of the container or unit (MemoryMax= in systemd){lower}"
    yield Result("memory", subject, State.FAILED, f"{limit // MIB:,} MiB are allowed", remedy)


# A provider.


async def _of_provider(config: ProviderConfig) -> list[Result]:
    joining = _joining(config, Role.PROVIDER, tuple(config.announced))
    brokers, targets = await asyncio.gather(
        check_brokers(config.servers, joining),
        asyncio.gather(*(_check_target(each, config) for each in config.targets)),
    )
    return brokers + targets


async def _check_target(target: Target, config: ProviderConfig) -> Result:
    """Connect to a target as a stream would, and check it if it has a check; else it sees no byte."""
    address, subject, dial = target.address, target.text, config.dial
    check = config.checks.check_of(target.service)
    why = ""
    found: list[SocketAddress]
    try:
        async with asyncio.timeout(RESOLVE_S):
            if isinstance(address, UnixPath):
                found = [(socket.AF_UNIX, address.path)]
            else:
                found = (await resolve(address.host, address.port))[:MAX_ADDRESSES]
    except (OSError, UnicodeError) as exc:
        why, found = f"the name cannot be resolved: {unresolved(exc)}", []
    if found:
        try:
            reached = await examine_target(
                target,
                found,
                timeout_s=dial.timeout_s,
                context=lambda: target_context(dial.ca, insecure=dial.insecure),
                path=None if check is None else check.path,
                proxy_protocol=dial.proxy_protocol,
            )
        except (UnwellError, OSError) as exc:
            why = str(exc)
        else:
            return Result("target", subject, State.OK, f"connected to {reached}")
    remedy = f"start the application, or correct its address{advice(address, why)}"
    return Result("target", subject, State.FAILED, why, remedy)


# A server, an edge or a broker.


async def _of_auth(auth: AuthConfig) -> list[Result]:
    """Connect to each authentication service as for a question; it sees no byte of one."""
    try:
        services = [(url, AuthService(url, frozenset(), ca=auth.auth_ca)) for url in auth.urls]
    except StartError:  # which the checks of the start have told
        return []
    return await asyncio.gather(*(_check_auth(url, service) for url, service in services))


async def _check_auth(url: AuthUrl, service: AuthService) -> Result:
    try:
        await service.reach()
    except (UnreachableError, OSError) as exc:
        why = "it takes too long" if isinstance(exc, TimeoutError) else str(exc)
        remedy = "start the service, or correct --auth-url; until then its requests get 503"
        return Result("auth", url.text, State.FAILED, why, remedy)
    return Result("auth", url.text, State.OK, "connected")


async def _of_ports(peers: PeerConfig, edges: Address | None) -> list[Result]:
    ports = [("providers", peers.providers), *([] if edges is None else [("edges", edges)])]
    return [await _check_port(option, address) for option, address in ports if address.port]


async def _check_port(option: str, address: Address) -> Result:
    """Find out whether a broker, or somebody else, listens at a port of ours."""
    found: list[SocketAddress] = []
    with contextlib.suppress(OSError, UnicodeError):  # the start fails, and says so
        async with asyncio.timeout(RESOLVE_S):
            found = (await resolve(address.host, address.port))[:MAX_ADDRESSES]
    findings = [finding for each in found if (finding := await probe(each)).cause is not Cause.UNREACHABLE]
    subject = f"{option} {address}"
    if not findings:
        return Result("port", subject, State.OK, "nobody listens")
    if findings[0].cause in (Cause.CURVE, Cause.PLAINTEXT) and not address.tls:
        return Result("port", subject, State.OK, "a broker listens")
    if findings[0].cause is Cause.TLS_PORT and address.tls:
        return Result("port", subject, State.OK, "a port with TLS")
    text = f"another program listens: {findings[0].detail}"
    remedy = f"stop that program, or choose another port with --{option}"
    return Result("port", subject, State.FAILED, text, remedy)


def _of_running_server(config: ServerConfig) -> Iterator[Result]:
    """Ask the server that runs with this name for the services of its providers."""
    name = config.process.own_name
    try:
        documents = ask_all([config.process.lock_dir], role="server", name=name).documents
    except ControlError as exc:
        yield Result("running", f"server {name}", State.WARNING, str(exc))
        return
    for document in documents:
        yield Result("running", f"server {name}", State.OK, f"process {document['pid']}")
        peers = [peer for peer in document["peers"] if peer["state"] in ("up", "draining")]
        for service in config.clients.services:
            serving = [peer["name"] for peer in peers if service in peer["services"]]
            if serving:
                yield Result("service", service, State.OK, f"offered by {', '.join(sorted(set(serving)))}")
            else:
                remedy = f"start one: `goreprox provider {service}=PORT --join-file FILE`"
                yield Result("service", service, State.FAILED, "no provider of it is connected", remedy)
