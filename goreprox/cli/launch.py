"""From options that are right to a role that runs: the log, warnings of what was configured, the limit of files."""

import resource
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from loguru import logger

from goreprox.cli.app import sources
from goreprox.cli.reread import Reread
from goreprox.cli.setup import Config
from goreprox.config.addresses import Address
from goreprox.config.reloads import Configuration
from goreprox.config.roles import BrokerConfig, EdgeConfig, ProviderConfig, ServerConfig
from goreprox.process import handover, running
from goreprox.process.log import configure
from goreprox.process.running import Role


def launch(config: Config, file: Path | None, arguments: Sequence[str]) -> None:
    """Run the role that `config` is of, to its end; `file` is where some of its options come from.

    A reload reads them again, with the same `arguments`.
    """
    inherited = handover.inherited()
    configure(config.process.log.level, as_json=config.process.log.json)
    for line in sources.unknown_variables():
        logger.bind(event="unknown_variable").warning("{}", line)
    if file is not None:
        logger.bind(event="config", file=str(file)).info("options are read from {}", file.resolve())
    links = _links(config)
    if any(each.nats for each in links):
        from goreprox.roles.cluster import check_installed as check_nats

        check_nats(links)
    exposed = [address for address in links if not address.is_loopback]
    for what, found in (
        ("are plaintext", [str(each) for each in exposed if not each.tls]),
        ("have no keys", [str(each) for each in exposed if each.tls]),
    ):
        if config.process.insecure and found:
            logger.bind(event="insecure", addresses=found).warning(
                "--insecure: links on {} {}; anyone who can reach that port can join", ", ".join(found), what
            )
    if config.process.dashboard is not None:
        from goreprox.roles.dashboard import check_installed

        check_installed(config.process)
    raise_file_limit()
    running.run(_role(config, Reread(arguments)), inherited)


def _links(config: Config) -> list[Address]:
    """Return the addresses of links: those listened on, or connected to."""
    match config:
        case EdgeConfig():
            return list(config.brokers)
        case ProviderConfig():
            return list(config.servers)
        case _:
            return [config.peers.providers, *([] if config.edges is None else [config.edges])]


def _role(config: Config, reread: Reread) -> Role:
    """Import the role that `config` is of, and no other: each is loaded as a whole before it is ready.

    It goes on with what a reload has applied if the code that was to take over cannot be started.
    """
    match config:
        case ServerConfig():
            from goreprox.roles.server import run as run_server

            return partial(run_server, Configuration(config, reread.as_a(ServerConfig), reread.given))
        case BrokerConfig():
            from goreprox.roles.broker import run as run_broker

            return partial(run_broker, Configuration(config, reread.as_a(BrokerConfig), reread.given))
        case ProviderConfig():
            from goreprox.roles.provider import run as run_provider

            return partial(run_provider, Configuration(config, reread.as_a(ProviderConfig), reread.given))
        case EdgeConfig(workers=1):
            from goreprox.roles.edge import run as run_edge

            return partial(run_edge, Configuration(config, reread.as_a(EdgeConfig), reread.given))
        case EdgeConfig():
            from goreprox.roles.workers import run as run_workers

            return partial(run_workers, Configuration(config, reread.as_a(EdgeConfig), reread.given))


def raise_file_limit() -> None:
    """Let this process open as many files as it may: every connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    # macOS reports no limit and takes none above OPEN_MAX (10,240); the old limit is still one to run with.
    for limit in (hard, 10_240):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (ValueError, OSError):
            continue
        return
