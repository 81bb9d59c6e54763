"""The server: an edge and a broker in one process, the default way to run."""

from collections.abc import Callable

from brokers import Role
from goreprox.config.roles import ServerConfig
from goreprox.control.socket import serving
from goreprox.errors import StartError
from goreprox.process.lifetime import Lifetime
from goreprox.roles.broker import describe, open_router
from goreprox.roles.dashboard import Dashboard
from goreprox.roles.edge import Edge
from goreprox.roles.entrances import entrances
from goreprox.roles.health import Health, Readiness
from goreprox.roles.member import Member
from goreprox.roles.reload import Reload
from goreprox.status.snapshot import Source


async def run(config: ServerConfig, *, read: Callable[[], ServerConfig]) -> None:
    """Run a server until a signal ends it. A reload gets the configuration by `read`.

    Raises:
        StartError: a port is not available, or a directory or a file cannot be used.
    """
    life = Lifetime()
    member = Member(config.process, "server", Role.EDGE, services=config.clients.services)
    edge = Edge(config)
    try:
        health = Health(config.process.health, Readiness(life, missing=lambda: edge.assignment.missing))
        router, ports, ways = await open_router(config)
    except StartError:
        edge.listeners.close()
        raise
    edge.introduce(member)
    local = router.attach(member.name, member.attributes, edge.driver)
    member.carriers = [local]
    edge.listeners.start()
    source = Source(member.instance, lambda: {"clients": edge.listeners.ports, **ports}, owner=edge, router=router)

    async def apply(new: ServerConfig) -> None:
        await edge.reconfigure(new)
        router.limit(new.peers.max_peers)

    reload = Reload(config, life, health, read=read, apply=apply)
    async with (
        health,
        Dashboard(config.process),
        serving(member.instance, {**source.commands, **health.commands, **reload.commands}),
    ):
        await life.serve(
            edge,
            [local, *ways],
            ready=f"{entrances(config.clients, edge.listeners.found)}, {describe(ports)}",
            connection=None,
            **source.ports(),
        )
