"""The broker: passes messages between edges and providers, in a server or a process of its own. It keeps no state."""

import errno
import os
import secrets
from collections.abc import Callable

from loguru import logger

from brokers import BindError, Role, Router, Timings
from goreprox.config.addresses import Address
from goreprox.config.defaults import EDGE_PORT
from goreprox.config.roles import BrokerConfig, ServerConfig
from goreprox.control.socket import serving
from goreprox.errors import StartError
from goreprox.keys.guard import Guard
from goreprox.keys.reach import Reach
from goreprox.process.instance import INCARNATION_BYTES, Instance
from goreprox.process.lifetime import LINGER_S, Closable, Lifetime
from goreprox.roles.dashboard import Dashboard
from goreprox.roles.health import Health, Readiness
from goreprox.roles.reload import Reload
from goreprox.status.snapshot import Source


async def open_router(config: BrokerConfig | ServerConfig) -> tuple[Router, dict[str, int], list[Closable]]:
    """Listen for providers and, if configured, for edges.

    Return the router, its ports by option, and what is to be closed at the end, in this order.

    Raises:
        StartError: a port is not available, or the state directory cannot be used.
    """
    guard = None if config.state_dir is None else Guard(config.state_dir)
    router = Router(
        timings=Timings(link_timeout_s=config.process.link_timeout_s),
        max_peers=config.peers.max_peers,
        security=None if guard is None else guard.security,
    )
    ports: dict[str, int] = {}
    for option, role, address in (
        ("providers", Role.PROVIDER, config.peers.providers),
        ("edges", Role.EDGE, config.edges),
    ):
        if address is None:
            continue
        try:
            ports[option] = router.bind(role, address.host, address.port)
        except BindError as exc:
            await router.close(linger_s=0)
            cause = os.strerror(exc.errno) if exc.errno else str(exc)
            raise StartError(
                f"cannot listen for {option} on {address}: {cause}; {_advice(exc.errno, f'--{option}')}"
            ) from exc
    if guard is None:
        return router, ports, [router]
    try:
        guard.start(router, _reach(config, ports))
    except StartError:
        await router.close(linger_s=0)
        raise
    return router, ports, [guard, router]


def _reach(config: BrokerConfig | ServerConfig, ports: dict[str, int]) -> Reach:
    """Return the addresses for join strings, with the ports that the system has assigned."""
    edges = config.edges or Address(config.peers.providers.host, EDGE_PORT)
    return Reach(
        config.peers.addresses,
        Address(config.peers.providers.host, ports["providers"]),
        Address(edges.host, ports.get("edges", edges.port)),
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


async def run(config: BrokerConfig, *, read: Callable[[], BrokerConfig]) -> None:
    """Run a broker until a signal ends it. It does not drain: peers continue over other brokers, or wait for a new one.

    A reload gets the configuration by `read`.

    Raises:
        StartError: a port is not available, or a directory cannot be used.
    """
    process, life = config.process, Lifetime()
    health = Health(process.health, Readiness(life))
    instance = Instance.acquire(process.lock_dir, "broker", process.own_name, secrets.token_bytes(INCARNATION_BYTES))
    router, ports, ways = await open_router(config)
    source = Source(instance, lambda: ports, router=router)

    async def apply(new: BrokerConfig) -> None:
        router.limit(new.peers.max_peers)

    reload = Reload(config, life, health, read=read, apply=apply)
    async with (
        health,
        Dashboard(config.process),
        serving(instance, {**source.commands, **health.commands, **reload.commands}),
    ):
        with life:
            life.ready(describe(ports), **ports)
            await life.stop.wait()
            logger.bind(event="stopping").info("shutting down")
            for way in ways:
                await way.close(linger_s=LINGER_S)  # until peers have the reason
