"""The broker: passes messages between edges and providers, in a server or a process of its own. It keeps no state."""

import errno
import functools
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from loguru import logger

from brokers import BindError, Role, Router, Timings
from goreprox.config.addresses import Address
from goreprox.config.defaults import EDGE_PORT
from goreprox.config.reloads import Configuration
from goreprox.config.roles import BrokerConfig, ServerConfig
from goreprox.control.socket import serving
from goreprox.errors import StartError
from goreprox.keys.guard import Guard
from goreprox.keys.reach import Reach
from goreprox.net.certificates import StoredFile
from goreprox.net.link_port import LinkCertificates, LinkPort
from goreprox.process.handover import Handover, Inherited
from goreprox.process.instance import INCARNATION_BYTES, Instance
from goreprox.process.lifetime import LINGER_S, Closable, Lifetime
from goreprox.roles.dashboard import Dashboard
from goreprox.roles.health import Health, Readiness, check_moved
from goreprox.roles.preflight import problems
from goreprox.roles.reload import Reload
from goreprox.roles.upgrade import Before, Upgrade
from goreprox.status.snapshot import Source


class Opened(NamedTuple):
    """A router and what is around it."""

    router: Router
    ports: dict[str, int]
    """By option."""
    ways: list[Closable]
    """To be closed at the end, in this order."""
    listening: Callable[[], Iterable[tuple[str, str, int]]]
    """Yields option, address, and a duplicate of a descriptor, of each listening socket (`Upgrade`)."""
    certificates: LinkCertificates


async def open_router(
    config: BrokerConfig | ServerConfig, before: Before | None = None, *, stored: StoredFile | None = None
) -> Opened:
    """Listen for providers and, if configured, for edges; after an upgrade on the sockets of the code `before`.

    Certificates are those of the configuration, and those that are `stored` (`Certificates`).

    Raises:
        StartError: a port is not available, or the state directory or a certificate cannot be used.
    """
    wanted = _ports(config)
    shared = isinstance(config, ServerConfig) and config.shared is not None
    certificates = LinkCertificates(
        config.clients.tls if isinstance(config, ServerConfig) else config.tls,
        needed=any(address.tls and not (shared and option == "providers") for option, _, address in wanted),
        stored=stored,
    )
    guard = None if config.keys_dir is None else Guard(config.keys_dir)
    router = Router(
        timings=Timings(link_timeout_s=config.process.link_timeout_s),
        max_peers=config.peers.max_peers,
        security=None if guard is None else guard.security,
    )
    ports: dict[str, int] = {}
    link_ports: dict[str, LinkPort] = {}
    ways: list[Closable] = [router]
    if before is not None:
        _close_moved(config, before)
    try:
        for option, role, address in wanted:
            descriptors = [] if before is None else before.ports.get(option, ("", []))[1]
            if not address.tls:
                ports[option] = _bind(router, option, role, address, descriptors)
                continue
            router.bind_for_relays(role)
            if option == "providers" and shared:
                ports[option] = address.port
                continue
            accepted = functools.partial(router.carry, role)
            link_ports[option] = LinkPort(option, address, certificates.context, accepted, descriptors)
            ports[option] = link_ports[option].number
            ways.insert(0, link_ports[option])
        if guard is not None:
            guard.start(router, _reach(config, ports))
            ways.insert(0, guard)
    except StartError:
        for way in ways:
            await way.close(linger_s=0)
        raise

    listening = functools.partial(_listening, wanted, router, link_ports)
    return Opened(router, ports, ways, listening, certificates)


def _listening(
    wanted: Sequence[tuple[str, Role, Address]], router: Router, link_ports: Mapping[str, LinkPort]
) -> Iterator[tuple[str, str, int]]:
    for option, role, address in wanted:
        if not address.tls:
            yield option, str(address), router.listening(role)
        elif option in link_ports:
            for descriptor in link_ports[option].descriptors:
                yield option, str(address), os.dup(descriptor)


def _bind(router: Router, option: str, role: Role, address: Address, descriptors: Sequence[int]) -> int:
    """Listen without TLS, on the socket that there is, if any; return the port.

    Raises:
        StartError: the port is not available.
    """
    try:
        return router.bind(role, address.host, address.port, next(iter(descriptors), None))
    except BindError as exc:
        cause = os.strerror(exc.errno) if exc.errno else str(exc)
        advice = _advice(exc.errno, f"--{option}")
        raise StartError(f"cannot listen for {option} on {address}: {cause}; {advice}") from exc


def _ports(config: BrokerConfig | ServerConfig) -> list[tuple[str, Role, Address]]:
    """Return where peers are accepted: option, role and address."""
    edges = [] if config.edges is None else [("edges", Role.EDGE, config.edges)]
    return [("providers", Role.PROVIDER, config.peers.providers), *edges]


def _close_moved(config: BrokerConfig | ServerConfig, before: Before) -> None:
    """Close the ports that the code `before` has left and that are not wanted any more, or now for clients, too."""
    wanted = {option: str(address) for option, _, address in _ports(config)}
    if isinstance(config, ServerConfig) and config.shared is not None:
        del wanted["providers"]
    for option, (address, descriptors) in list(before.ports.items()):
        if wanted.get(option) != address:
            del before.ports[option]
            for descriptor in descriptors:
                os.close(descriptor)


def _reach(config: BrokerConfig | ServerConfig, ports: dict[str, int]) -> Reach:
    """Return the addresses for join strings, with the ports that the system has assigned."""
    edges = config.edges or Address(config.peers.providers.host, EDGE_PORT)
    return Reach(
        config.peers.addresses,
        replace(config.peers.providers, port=ports["providers"]),
        replace(edges, port=ports.get("edges", edges.port)),
    )


def _advice(code: int | None, option: str) -> str:
    match code:
        case errno.EADDRINUSE:
            return f"stop what listens there, or choose another port with {option}"
        case errno.EACCES:
            return f"ports below 1024 need privileges: choose a higher one with {option}"
        case _:
            return f"give an address of this machine to {option}"


def describe(ports: dict[str, int]) -> str:
    """Describe, for log lines, which port is for whom."""
    return ", ".join(f"{option} on {port}" for option, port in ports.items())


async def run(configuration: Configuration[BrokerConfig], inherited: Inherited | None = None) -> Handover | None:
    """Run a broker until a signal ends it, or other code is to take over.

    It does not drain: peers continue over other brokers, or wait for a new one.

    Raises:
        StartError: a port is not available, or a directory cannot be used.
        ExportError: what was inherited is not the state of a broker.
    """
    config = configuration.current
    process, life = config.process, Lifetime()
    before = None if inherited is None else Before.read(inherited)
    if before is None:
        incarnation = secrets.token_bytes(INCARNATION_BYTES)
        instance = Instance.acquire(process.lock_dir, "broker", process.own_name, incarnation)
    else:
        instance = before.instance(process, "broker")
        if before.inherited.trial:
            check(config, before)
            return None
    health = Health(process.health, Readiness(life), None if before is None else before.health)
    router, ports, ways, listening, certificates = await open_router(config, before)
    source = Source(instance, lambda: ports, router=router)

    async def apply(new: BrokerConfig) -> None:
        certificates.reconfigured(new.tls)()
        router.limit(new.peers.max_peers)

    reload = Reload(configuration, life, health, apply=apply)
    upgrade = Upgrade(life, None, instance, health, ports=listening, feed=source.feed)
    life.upgrade_asked = upgrade.signalled
    if before is not None:
        upgrade.took_over(before)
    commands = {**source.commands, **health.commands, **reload.commands, **upgrade.commands}
    async with health, Dashboard(config.process), serving(instance, commands):
        with life:
            life.ready(describe(ports), **ports)
            await life.stop.wait()
            if not life.replaced:
                logger.bind(event="stopping").info("shutting down")
            for way in ways:
                await way.close(linger_s=0.0 if life.replaced else LINGER_S)  # until peers have the reason
        return upgrade.handover()


def check(config: BrokerConfig | ServerConfig, before: Before) -> None:
    """Check that a broker could take over from the code `before` with `config`, but for ports that are in use.

    Raises:
        GoreproxError: it could not.
    """
    check_moved(config.process.health, before.health)
    for problem in problems(config):
        raise problem
