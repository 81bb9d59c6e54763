"""The carrier of an edge or a provider whose brokers are the servers of a NATS cluster."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from loguru import logger

from brokers import Cause, LinkSecurity, PeerName, Receiver, Timings
from brokers.nats import NO_KEY, Login, NatsCarrier, Server, engine
from goreprox.config.addresses import Address
from goreprox.errors import StartError
from goreprox.keys.claims import KeyClaims, NoClaims, key_token
from goreprox.net.link_tls import Trust
from goreprox.process.files import FileKind, read_file

CREDS: Final = FileKind("credentials of NATS", secret=True, sign="-----BEGIN NATS USER JWT")


def check_installed(addresses: Sequence[Address]) -> None:
    """Require what connections to NATS need, if there are to be any.

    Raises:
        StartError: it is not installed.
    """
    needed = {"nats": "nats-py", "nacl": "PyNaCl"}
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing and any(each.nats for each in addresses):
        raise StartError(f"nats: it needs {' and '.join(missing)}; pip install 'goreprox[nats]'")


def check_creds(path: Path) -> None:
    """Require a credentials file that nobody else can read.

    Raises:
        StartError: it is none, or others can.
    """
    try:
        read_file(path, CREDS)
    except OSError as exc:
        raise StartError(
            f"nats-creds {path}: {exc.strerror}; name the file that the operator of NATS gave you"
        ) from exc


def servers_of(addresses: Sequence[Address], *, plaintext: bool) -> list[Server]:
    """Return the servers at these addresses: with TLS, except those on loopback, or if all may be in `plaintext`."""
    return [Server(each.host or "127.0.0.1", each.port, plaintext or each.is_loopback) for each in addresses]


def warn(servers: Sequence[Address]) -> None:
    """Say who can read what goes over NATS servers."""
    label = ", ".join(map(str, servers))
    logger.bind(event="nats_plaintext", servers=label).warning(
        "those who operate the NATS servers at {} can read what clients send and receive, unless they encrypt it", label
    )


def carrier(
    name: PeerName,
    attributes: Mapping[str, object],
    servers: Sequence[Address],
    receiver: Receiver,
    *,
    security: LinkSecurity | None,
    trust: Trust,
    creds: Path | None,
    timings: Timings,
    changed: Callable[[], None],
    advise: Callable[[Cause], str | None] | None = None,
) -> NatsCarrier:
    """Return the carrier to these servers: with a key and with TLS, but for servers on loopback, or without keys.

    It logs in by the key, or by the credentials file `creds`.

    Raises:
        StartError: that file cannot be used.
    """
    if creds is not None:
        check_creds(creds)
    keys = None if security is None else security.keys
    at = engine(servers_of(servers, plaintext=keys is None), Login(keys, creds), lambda: trust.context)
    return NatsCarrier(
        name,
        attributes,
        at,
        receiver,
        NoClaims() if security is None else KeyClaims(name, security),
        key=NO_KEY if keys is None else key_token(keys.public),
        timings=timings,
        advise=advise or advice,
        changed=changed,
    )


advice = {
    Cause.UNRESOLVED: "is that its name?",
    Cause.UNREACHABLE: "is it running, and does a firewall let this through?",
    Cause.TLS: "give it a certificate, or add --insecure for servers without TLS and without keys",
    Cause.CERTIFICATE: "the host must be a name of its certificate, and --server-ca those who signed that",
    Cause.OTHER_PROTOCOL: "is that the port for NATS clients, 4222?",
}.get
"""Returns what to do about a cause, if anything."""
