"""The commands `server`, `edge`, `broker` and `provider`: from options to the configuration of a role.

Networking is imported once the options are right, so that `--help` and mistakes are answered without.
"""

import functools
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from goreprox.cli.joining import keys_directory, membership
from goreprox.cli.options import JoinOptions, StartOptions, StateDir
from goreprox.config.addresses import EDGES, Address, Target
from goreprox.config.clients import ClientConfig
from goreprox.config.defaults import DEFAULT_WEIGHT, DEFAULT_WORKERS, EDGE_PORT, PROVIDER_PORT
from goreprox.config.options import ADDRESSES, LIMITS, Count, Number, Port, several
from goreprox.config.process import ConnectionConfig, ProcessConfig
from goreprox.config.roles import BrokerConfig, DialConfig, EdgeConfig, PeerConfig, ProviderConfig, ServerConfig
from goreprox.errors import ConfigError

if TYPE_CHECKING:
    from goreprox.cli.launch import Config


def _remotes(port: int) -> Parameter:
    """Declare addresses to connect to, at `port` where they name none."""
    return several(functools.partial(Address.parse, default_port=port), "HOST[:PORT]")


_Edges = Annotated[Port, Parameter(group=ADDRESSES)]


def server(
    *,
    peers: PeerConfig | None = None,
    edges: Annotated[_Edges | None, Parameter(show_default=False)] = None,
    state_dir: StateDir = None,
    clients: ClientConfig | None = None,
    connections: ConnectionConfig | None = None,
    process: ProcessConfig | None = None,
    start: StartOptions | None = None,
) -> None:
    """Run on the public machine: accept clients and pass them on to providers.

    It is an edge and a broker in one process.

    Parameters
    ----------
    edges
        Accept further edges here. [default: none]
    """
    process = process or ProcessConfig()
    config = ServerConfig(
        process=process,
        connections=connections or ConnectionConfig(),
        clients=clients or ClientConfig(),
        peers=peers or PeerConfig(),
        edges=edges,
        state_dir=keys_directory(process, state_dir),
    )
    _launch(config, start)


def edge(
    *,
    broker: Annotated[tuple[Address, ...], _remotes(EDGE_PORT), Parameter(group=ADDRESSES)] = (),
    workers: Annotated[Count, Parameter(group=LIMITS)] = DEFAULT_WORKERS,
    join: JoinOptions | None = None,
    clients: ClientConfig | None = None,
    connections: ConnectionConfig | None = None,
    process: ProcessConfig | None = None,
    start: StartOptions | None = None,
) -> None:
    """Accept clients and pass them on to providers over brokers elsewhere.

    Parameters
    ----------
    broker
        Connect to this broker, by default to port 9888. May be repeated. [default: as the join string says]
    workers
        Run so many processes that share the ports. Limits of connections and memory are for each of them.
    """
    member = membership("edge", process or ProcessConfig(), broker, join)
    if not member.addresses:
        raise ConfigError("broker: none is given; say where it is, like `--broker host:9888`")
    config = EdgeConfig(
        brokers=member.addresses,
        security=member.security,
        process=member.process,
        connections=connections or ConnectionConfig(),
        clients=clients or ClientConfig(),
        workers=workers,
    )
    _launch(config, start)


def broker(
    *,
    peers: PeerConfig | None = None,
    edges: _Edges = EDGES,
    state_dir: StateDir = None,
    process: ProcessConfig | None = None,
    start: StartOptions | None = None,
) -> None:
    """Connect edges and providers with each other. It keeps no state, and there can be several.

    Parameters
    ----------
    edges
        Accept edges here.
    """
    process = process or ProcessConfig()
    config = BrokerConfig(
        process=process,
        peers=peers or PeerConfig(),
        edges=edges,
        state_dir=keys_directory(process, state_dir),
    )
    _launch(config, start)


def provider(
    target: Annotated[tuple[Target, ...], several(Target.parse, "TARGET"), Parameter(group=ADDRESSES)] = (),
    *,
    server: Annotated[tuple[Address, ...], _remotes(PROVIDER_PORT), Parameter(group=ADDRESSES)] = (),
    weight: Annotated[Number, Parameter(group=LIMITS)] = DEFAULT_WEIGHT,
    join: JoinOptions | None = None,
    dial: DialConfig | None = None,
    connections: ConnectionConfig | None = None,
    process: ProcessConfig | None = None,
    start: StartOptions | None = None,
) -> None:
    """Run on the private machine: expose local TCP servers through a server.

    Parameters
    ----------
    target
        Expose this TCP server: [SERVICE=][tls://][HOST:]PORT, with tls:// if it speaks TLS only. By default the
        service is `default` and the host 127.0.0.1. May be repeated. Required.
    server
        Connect to this server or broker, by default to port 9887. May be repeated. [default: as the join string says]
    weight
        Get this share of new connections, relative to other providers of the service, 0.01 to 1000.
    """
    if not target:
        raise ConfigError("target: none is given; say what to expose, like `goreprox provider 3000 --join-file FILE`")
    member = membership("provider", process or ProcessConfig(), server, join)
    if not member.addresses:
        raise ConfigError("server: none is given; say where it is, like `--server host:9887`")
    config = ProviderConfig(
        targets=target,
        servers=member.addresses,
        security=member.security,
        process=member.process,
        connections=connections or ConnectionConfig(),
        dial=dial or DialConfig(),
        weight=weight,
    )
    _launch(config, start)


def _launch(config: "Config", start: StartOptions | None) -> None:
    from goreprox.cli.launch import launch

    launch(config, start or StartOptions())
