"""The commands `server`, `edge`, `broker` and `provider`: from options to the configuration of a role.

They return it, for `main` to run the role, or for others to look at it.
"""

import functools
from typing import Annotated, Final

from cyclopts import Parameter

from goreprox.cli.joining import membership, state_directory
from goreprox.cli.options import STATE_DIR_DEFAULT, JoinOptions, StartOptions, StateDir
from goreprox.cli.setup import Setup
from goreprox.config.addresses import EDGES, Address, Target
from goreprox.config.certificates import CertificateConfig
from goreprox.config.clients import ClientConfig
from goreprox.config.defaults import DEFAULT_WEIGHT, DEFAULT_WORKERS, EDGE_PORT, PROVIDER_PORT
from goreprox.config.options import ADDRESSES, LIMITS, Count, LinkPort, Number, several
from goreprox.config.process import ConnectionConfig
from goreprox.config.proxy import ProxyConfig
from goreprox.config.publish import PublishConfig
from goreprox.config.roles import (
    Addresses,
    BrokerConfig,
    DialConfig,
    EdgeConfig,
    PeerConfig,
    ProviderConfig,
    ServerConfig,
)
from goreprox.config.target_checks import CheckConfig
from goreprox.errors import ConfigError


def _remotes(port: int) -> Parameter:
    """Declare addresses to connect to, at `port` where they name none."""
    return several(functools.partial(Address.parse_remote, default_port=port), "[tls://|nats://]HOST[:PORT]")


_CONNECTIONS: Final = ConnectionConfig()
_CLIENTS: Final = ClientConfig()
_PEERS: Final = PeerConfig()
_CERTIFICATES: Final = CertificateConfig()
_DIAL: Final = DialConfig()
_CHECKS: Final = CheckConfig()
_PROXY: Final = ProxyConfig()
_PUBLISH: Final = PublishConfig()
_JOIN: Final = JoinOptions()
_START: Final = StartOptions()
_Edges = Annotated[LinkPort, Parameter(group=ADDRESSES)]


def server(
    *,
    peers: PeerConfig = _PEERS,
    edges: Annotated[_Edges | None, Parameter(show_default=False)] = None,
    state_dir: StateDir = None,
    clients: ClientConfig = _CLIENTS,
    connections: ConnectionConfig = _CONNECTIONS,
    start: StartOptions = _START,
) -> Setup:
    """Run a server.

    Parameters
    ----------
    edges
        Accept further edges here, in TLS if it begins with tls://. [default: none]
    """
    config = ServerConfig(
        process=start.process,
        connections=connections,
        clients=clients,
        peers=peers,
        edges=edges,
        state_dir=state_directory(state_dir, needed=clients.acme.enabled or not start.process.insecure),
    )
    return Setup(config, start.file.config)


def edge(
    *,
    broker: Annotated[tuple[Address, ...], _remotes(EDGE_PORT), Parameter(group=ADDRESSES)] = (),
    workers: Annotated[Count, Parameter(group=LIMITS)] = DEFAULT_WORKERS,
    address: Addresses = (),
    state_dir: Annotated[StateDir, Parameter(help=f"Keep certificates of --acme here. {STATE_DIR_DEFAULT}")] = None,
    join: JoinOptions = _JOIN,
    proxy: ProxyConfig = _PROXY,
    clients: ClientConfig = _CLIENTS,
    connections: ConnectionConfig = _CONNECTIONS,
    start: StartOptions = _START,
) -> Setup:
    """Run an edge, or several as workers.

    Parameters
    ----------
    broker
        Connect to this broker, by default to port 9888, in TLS if it begins with tls://, or to this server of a NATS
        cluster: nats://HOST, port 4222. May be repeated. [default: as the join string says]
    workers
        Run so many processes that share the ports. Limits of connections and memory are for each of them.
    address
        Tell providers this address of the machine, for published ports. May be repeated. [default: this machine's name]
    """
    member = membership("edge", start.process, broker, join)
    if not member.addresses:
        raise ConfigError("broker: none is given; say where it is, like `--broker host:9888`")
    config = EdgeConfig(
        brokers=member.addresses,
        security=member.security,
        process=member.process,
        connections=connections,
        clients=clients,
        proxy=proxy,
        workers=workers,
        addresses=address,
        state_dir=state_directory(state_dir, needed=clients.acme.enabled),
    )
    return Setup(config, start.file.config)


def broker(
    *,
    peers: PeerConfig = _PEERS,
    edges: _Edges = EDGES,
    state_dir: StateDir = None,
    tls: CertificateConfig = _CERTIFICATES,
    start: StartOptions = _START,
) -> Setup:
    """Run a broker.

    Parameters
    ----------
    edges
        Accept edges here, in TLS if it begins with tls://.
    """
    config = BrokerConfig(
        process=start.process,
        peers=peers,
        edges=edges,
        state_dir=state_directory(state_dir, needed=not start.process.insecure),
        tls=tls,
    )
    return Setup(config, start.file.config)


def provider(
    target: Annotated[tuple[Target, ...], several(Target.parse, "TARGET"), Parameter(group=ADDRESSES)] = (),
    *,
    server: Annotated[tuple[Address, ...], _remotes(PROVIDER_PORT), Parameter(group=ADDRESSES)] = (),
    weight: Annotated[Number, Parameter(group=LIMITS)] = DEFAULT_WEIGHT,
    join: JoinOptions = _JOIN,
    proxy: ProxyConfig = _PROXY,
    dial: DialConfig = _DIAL,
    checks: CheckConfig = _CHECKS,
    publish: PublishConfig = _PUBLISH,
    connections: ConnectionConfig = _CONNECTIONS,
    start: StartOptions = _START,
) -> Setup:
    """Run a provider.

    Parameters
    ----------
    target
        Expose this server: [SERVICE=][tls://][HOST:]PORT, with tls:// if it speaks TLS only, or [SERVICE=]unix:PATH.
        By default the service is `default` and the host 127.0.0.1. May be repeated. Required.
    server
        Connect to this server or broker, by default to port 9887, in TLS if it begins with tls://, or to this server of
        a NATS cluster: nats://HOST, port 4222. May be repeated. [default: as the join string says]
    weight
        Get this share of new connections, relative to other providers of the service, 0.01 to 1000.
    """
    if not target:
        raise ConfigError("target: none is given; say what to expose, like `goreprox provider 3000 --join-file FILE`")
    member = membership("provider", start.process, server, join)
    if not member.addresses:
        raise ConfigError("server: none is given; say where it is, like `--server host:9887`")
    config = ProviderConfig(
        targets=target,
        servers=member.addresses,
        security=member.security,
        process=member.process,
        connections=connections,
        dial=dial,
        checks=checks,
        publish=publish,
        proxy=proxy,
        weight=weight,
    )
    return Setup(config, start.file.config)
