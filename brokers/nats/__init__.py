"""NATS as a carrier: the same messages between the same peers, where brokers are an existing cluster of nats-servers.

`subjects` says who speaks where, `roster` who is there, `frames` what a message is; all three are sans-IO. `carrier`
joins them to an engine. The engine that speaks with NATS is `client`, which alone imports nats-py, once it is needed.
"""

import ssl
from collections.abc import Callable, Sequence

from brokers.nats.carrier import NatsCarrier
from brokers.nats.engine import Connection, Engine, Listener, Login, Server
from brokers.nats.nkey import public_nkey
from brokers.nats.roster import Policy
from brokers.nats.subjects import NO_KEY, Permissions, of_key_holder, permissions, revoked, text_of, token

__all__ = [
    "NO_KEY",
    "Connection",
    "Engine",
    "Listener",
    "Login",
    "NatsCarrier",
    "Permissions",
    "Policy",
    "Server",
    "engine",
    "of_key_holder",
    "permissions",
    "public_nkey",
    "revoked",
    "text_of",
    "token",
]


def engine(servers: Sequence[Server], login: Login, context: Callable[[], ssl.SSLContext]) -> Engine:
    """Return what connects to these servers, of which there is at least one; `context` returns that of TLS.

    It needs nats-py and PyNaCl: the extra `nats`.
    """
    from brokers.nats.client import NatsEngine  # noqa: PLC0415 -- see above

    return NatsEngine(servers, login, context)
