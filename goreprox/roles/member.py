"""An edge or a provider as a peer: its lock, its name, its entry in the peer list, its links."""

import secrets
from collections.abc import Callable, Iterable, Sequence

from brokers import (
    INTEREST,
    Carrier,
    Cause,
    Link,
    LinkSecurity,
    PeerName,
    Proxy,
    RemoteCarrier,
    Role,
    Timings,
    interest_attribute,
    interest_in,
)
from goreprox.config.addresses import Address
from goreprox.config.defaults import EDGE_PORT, PROVIDER_PORT
from goreprox.config.names import default_name
from goreprox.config.process import ProcessConfig
from goreprox.config.proxy import ProxyConfig
from goreprox.net.link_tls import Trust, tls_of
from goreprox.process.instance import INCARNATION_BYTES, Instance
from goreprox.protocol.limits import ACKS_BEFORE_EOF, VERSION, VERSION_LEAST
from goreprox.roles.links import Links, Place
from goreprox.roles.upgrade import Before
from goreprox.tunnel.attributes import Attributes, interests, who
from goreprox.tunnel.driver import Driver


class Member:
    """One life of an edge or a provider. At its clean end `instance` is released."""

    def __init__(
        self,
        config: ProcessConfig,
        what: str,
        role: Role,
        *,
        services: Sequence[str],
        before: Before | None = None,
    ) -> None:
        """Lock a slot for the process `what` (server, edge, provider), as a new peer of `role`.

        After an upgrade be the same peer as `before`, with its lock.

        Raises:
            StartError: the runtime directory cannot be used, or it or the name has changed in an upgrade.
        """
        self._identities = {} if before is None else before.links
        if before is None:
            self.name = PeerName(role, config.own_name, secrets.token_bytes(INCARNATION_BYTES))
            self.instance = Instance.acquire(config.lock_dir, what, config.own_name, self.name.incarnation)
        else:
            self.name = PeerName(role, before.name, before.incarnation)
            self.instance = before.instance(config, what)
        self.attributes: dict[str, object] = {
            "protocol": [VERSION_LEAST, VERSION],
            "services": list(services),
            ACKS_BEFORE_EOF: True,
            **who(what, default_name()),
        }
        if self.instance.predecessor is not None:
            self.attributes["predecessor"] = self.instance.predecessor
        self.carriers: Sequence[Carrier] = ()
        """The ways to all brokers, connected or not."""
        self._timings = Timings(link_timeout_s=config.link_timeout_s)
        self._interest = 0

    def announce(self, attributes: Attributes) -> None:
        """Change these attributes of ours in the peer lists of all brokers."""
        self.attributes = {**self.attributes, **attributes}
        if INTEREST in self.attributes:
            self._hear_of([])
        for carrier in self.carriers:
            carrier.announce(self.attributes)

    def _hear_of(self, services: Iterable[str]) -> None:
        """Hear of peers for these services and those that we announce, and for all before, which may be in use."""
        self._interest |= interest_in(interests(self.attributes, services))
        self.attributes |= interest_attribute(self._interest)

    def link(
        self,
        addresses: Sequence[Address],
        proxies: ProxyConfig,
        trust: Trust,
        receiver: Driver,
        security: LinkSecurity | None,
    ) -> Links:
        """Start a link to each of the brokers at `addresses`, in plaintext unless there is `security`."""
        self._hear_of(receiver.services)

        def make(place: Place, proxy: Proxy | None, changed: Callable[[], None]) -> RemoteCarrier:
            address = place[0]
            if address.nats:
                from goreprox.roles.cluster import carrier, warn  # noqa: PLC0415 -- few are at NATS

                warn(place)
                return carrier(
                    self.name,
                    self.attributes,
                    place,
                    receiver,
                    security=security,
                    trust=trust,
                    creds=proxies.nats_creds,
                    timings=self._timings,
                    changed=changed,
                )
            return Link(
                self.name,
                self.attributes,
                address.host or "127.0.0.1",
                address.port,
                receiver,
                timings=self._timings,
                security=security,
                called=_broker_of(self.name.role),
                advise=advice(self.name.role, address.port),
                changed=changed,
                identities=self._identities,
                proxy=proxy,
                tls=tls_of(address, trust),
            )

        links = Links(addresses, proxies, make)
        self.carriers = links.all
        return links


def _broker_of(role: Role) -> str:
    """Return what the broker of a peer is called: a provider does not know whether it is more than that."""
    return "broker" if role is Role.EDGE else "server"


def advice(role: Role, port: int) -> Callable[[Cause], str | None]:
    """Return a function that says what to do if the link of a `role` to `port` does not come up."""
    broker, usual_port = _broker_of(role), EDGE_PORT if role is Role.EDGE else PROVIDER_PORT
    if port == usual_port:
        elsewhere = f"is the {broker} running there, or does a captive portal or a proxy respond in its place?"
    else:
        elsewhere = f"is that the port for clients? {role}s have {usual_port}"
    return {
        Cause.UNRESOLVED: f"if the {broker} has another name, give it by --{broker} HOST",
        Cause.UNREACHABLE: "is it running, and does a firewall let this through?",
        Cause.PROXY_UNREACHABLE: "is it running, and is --proxy its address?",
        Cause.PROXY_PASSWORD: "write USER:PASSWORD@HOST:PORT in the variable GOREPROX_PROXY, or in --proxy",
        Cause.PROXY_REFUSED: (
            f"ask its operator to allow port {port}; if it allows 443 alone, start the {broker} with --{role}s 443"
        ),
        Cause.PROXY_FAILED: "is that the address of a proxy of this kind? --proxy names it",
        Cause.TLS: f"does it run with --{role}s tls://…? otherwise leave tls:// out",
        Cause.CERTIFICATE: (
            f"--{broker} must be a name of its certificate, and --server-ca those who signed that, if not the system's"
        ),
        Cause.TLS_PORT: f"if it runs with --{role}s tls://…, write tls:// before its address",
        Cause.SILENT: elsewhere,
        Cause.OTHER_PROTOCOL: elsewhere,
        Cause.STALLED: "is it stopped or overloaded?",
        Cause.SLOW: "is it overloaded?",
        Cause.PLAINTEXT: "start it with keys, or this one with --insecure, too",
        Cause.CURVE: "get a join string from it",
        Cause.OTHER_KEY: "get a new join string from it",
    }.get
