"""The carrier of an edge or a provider whose brokers are the servers of a NATS cluster."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence

from loguru import logger

from brokers import Cause, LinkSecurity, PeerName, Receiver, Timings
from brokers.nats import NO_KEY, Login, NatsCarrier, Server, engine
from goreprox.config.addresses import Address
from goreprox.errors import StartError
from goreprox.keys.claims import KeyClaims, NoClaims, key_token
from goreprox.net.link_tls import Trust


def check_installed(addresses: Sequence[Address]) -> None:
    """Require what connections to NATS need, if there are to be any.

    Raises:
        StartError: it is not installed.
    """
    needed = {"nats": "nats-py", "nacl": "PyNaCl"}
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing and any(each.nats for each in addresses):
        raise StartError(f"nats: it needs {' and '.join(missing)}; pip install 'goreprox[nats]'")


def carrier(
    name: PeerName,
    attributes: Mapping[str, object],
    servers: Sequence[Address],
    receiver: Receiver,
    *,
    security: LinkSecurity | None,
    trust: Trust,
    timings: Timings,
    changed: Callable[[], None],
) -> NatsCarrier:
    """Return the carrier to these servers: with a key and with TLS, but for servers on loopback, or without keys."""
    keys = None if security is None else security.keys
    at = engine(
        [Server(each.host or "127.0.0.1", each.port, each.is_loopback or keys is None) for each in servers],
        Login(keys),
        lambda: trust.context,
    )
    logger.bind(event="nats_plaintext", broker=at.label).warning(
        "whoever operates the NATS servers at {} can read the connections of clients, unless these are encrypted "
        "themselves",
        at.label,
    )
    return NatsCarrier(
        name,
        attributes,
        at,
        receiver,
        NoClaims() if security is None else KeyClaims(name, security),
        key=NO_KEY if keys is None else key_token(keys.public),
        timings=timings,
        advise=_ADVICE.get,
        changed=changed,
    )


_ADVICE = {
    Cause.UNRESOLVED: "is that its name?",
    Cause.UNREACHABLE: "is it running, and does a firewall let this through?",
    Cause.TLS: "give it a certificate, or add --insecure for servers without TLS and without keys",
    Cause.CERTIFICATE: "the host must be a name of its certificate, and --server-ca those who signed that",
    Cause.OTHER_PROTOCOL: "is that the port for NATS clients, 4222?",
}
