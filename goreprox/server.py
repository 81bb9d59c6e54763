"""The server: an edge and a broker in one process, the default way to run."""

import errno
import secrets

from loguru import logger

from brokers import BindError, PeerName, Role, Router, Timings
from goreprox.config import ServerConfig
from goreprox.edge import Edge
from goreprox.errors import StartError
from goreprox.instance import Instance
from goreprox.lifetime import Signals
from goreprox.protocol.limits import VERSION, VERSION_LEAST


async def run(config: ServerConfig) -> None:
    """Be a server until a signal ends it.

    Raises:
        StartError: a port cannot be had, or the runtime directory not be used.
    """
    incarnation = secrets.token_bytes(16)
    instance = Instance.acquire(config.runtime_dir, "server", config.name, incarnation)
    attributes: dict[str, object] = {"protocol": [VERSION_LEAST, VERSION]}
    if instance.predecessor is not None:
        attributes["predecessor"] = instance.predecessor
    edge = Edge(config)
    router = Router(timings=Timings(link_timeout_s=config.link_timeout_s))
    try:
        providers = router.bind(Role.PROVIDER, config.providers.host, config.providers.port)
    except BindError as exc:
        edge.stop_accepting()
        await router.close(linger_s=0)
        advice = "ports below 1024 need privileges" if exc.errno == errno.EACCES else "is another server running?"
        raise StartError(f"{exc}; {advice}; choose another port with --providers") from exc
    local = router.attach(PeerName(Role.EDGE, config.name, incarnation), attributes, edge.driver)
    with Signals() as signals:
        edge.start()
        logger.bind(event="ready", clients=edge.ports, providers=providers).info(
            "ready: clients on {}, providers on {}", ", ".join(map(str, edge.ports)), providers
        )
        await signals.stop.wait()
        logger.info("shutting down: connections have {:g} s to end", config.drain_s)
        await signals.unless_hurried(edge.close(drain_s=config.drain_s))
        await local.close(linger_s=0)
        await router.close(linger_s=0.0 if signals.hurried else 1.0)
    instance.release()
