"""The server: an edge and a broker in one process, the default way to run."""

import functools

from brokers import Role
from goreprox.config.reloads import Configuration
from goreprox.config.roles import ServerConfig
from goreprox.control.socket import serving
from goreprox.errors import StartError
from goreprox.net.certificates import StoredFile
from goreprox.process.handover import Handover, Inherited
from goreprox.process.lifetime import Lifetime
from goreprox.roles.broker import check, describe, open_router
from goreprox.roles.dashboard import Dashboard
from goreprox.roles.drain import Drain
from goreprox.roles.edge import restored
from goreprox.roles.entrances import entrances
from goreprox.roles.health import Health, Readiness
from goreprox.roles.member import Member
from goreprox.roles.reload import Reload
from goreprox.roles.upgrade import Before, Upgrade
from goreprox.status.snapshot import Source


async def run(configuration: Configuration[ServerConfig], inherited: Inherited | None = None) -> Handover | None:
    """Run a server until a signal ends it, or other code is to take over.

    Raises:
        StartError: a port is not available, or a directory or a file cannot be used.
        ExportError: what was inherited is not the state of a server.
    """
    config = configuration.current
    before = None if inherited is None else Before.read(inherited)
    member = Member(config.process, "server", Role.EDGE, services=config.clients.services, before=before)
    edge, state = restored(config, member, before)
    if before is not None and before.inherited.trial:
        check(config, before)
        return None

    def stored(config: ServerConfig) -> StoredFile | None:
        return edge.acme.file_of if config.clients.acme.enabled else None

    life = Lifetime()
    readiness = Readiness(life, missing=lambda: edge.assignment.missing, draining=lambda: edge.driver.draining)
    try:
        health = Health(config.process.health, readiness, None if before is None else before.health)
        router, ports, ways, listening, certificates = await open_router(config, before, stored=stored(config))
    except StartError:
        edge.listeners.close()
        raise
    local = router.attach(member.name, member.attributes, edge.driver)
    member.carriers = [local]
    edge.admission.linked = functools.partial(router.carry, Role.PROVIDER)
    edge.listeners.start()
    source = Source(member.instance, lambda: {"clients": edge.listeners.ports, **ports}, owner=edge, router=router)

    async def apply(new: ServerConfig) -> None:
        if (new.shared is None) != (config.shared is None):
            raise StartError(
                f"listen: whether clients share the port of --providers {config.peers.providers} cannot change in a "
                "reload; restart the process for that"
            )
        certify = certificates.reconfigured(new.clients.tls, stored(new))
        await edge.reconfigure(new)
        certify()
        router.limit(new.peers.max_peers)

    reload = Reload(configuration, life, health, apply=apply)
    upgrade = Upgrade(life, state, member.instance, health, ports=listening, feed=source.feed)
    life.upgrade_asked = upgrade.signalled
    if before is not None:
        upgrade.took_over(before)
    commands = {**source.commands, **health.commands, **reload.commands, **upgrade.commands}
    commands |= {**Drain(edge, life).commands, **edge.inspection.commands}
    async with edge.acme, health, Dashboard(config.process), serving(member.instance, commands):
        await life.serve(
            edge,
            [local, *ways],
            ready=f"{entrances(config.clients, edge.listeners.found)}, {describe(ports)}",
            connection=None,
            **source.ports(),
        )
        return upgrade.handover()
