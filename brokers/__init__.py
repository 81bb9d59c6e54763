"""The message fabric: opaque messages between named peers, best effort, in order on a path, never blocking.

It reports which peers are up. It may lose messages; its users recover. It imports nothing from goreprox.
"""

from brokers.carrier import Buffer, Carrier, LinkCondition, Receiver, RemoteCarrier, Timings
from brokers.causes import OF_PROXY, Cause
from brokers.cbor import decode_cbor
from brokers.connect import NEXT_ADDRESS_S, connect, interleaved
from brokers.diagnosis import Finding, probe
from brokers.envelope import REVOKED
from brokers.errors import BadMessage, BadName, BindError, FabricError
from brokers.interest import INTEREST, interest_attribute, interest_in
from brokers.keys import Authority, BrokerSecurity, Grant, KeyPair, LinkSecurity, is_key
from brokers.limited_log import LimitedLog
from brokers.link import Link
from brokers.local import LocalPeer
from brokers.peers import LinkIdentity, PeerInfo, PeerName, Role
from brokers.proxy import OpenError, Proxy, addresses
from brokers.resolver import SocketAddress, resolve
from brokers.router import Router
from brokers.transport import Tls, Transport

__all__ = [
    "INTEREST",
    "NEXT_ADDRESS_S",
    "OF_PROXY",
    "REVOKED",
    "Authority",
    "BadMessage",
    "BadName",
    "BindError",
    "BrokerSecurity",
    "Buffer",
    "Carrier",
    "Cause",
    "FabricError",
    "Finding",
    "Grant",
    "KeyPair",
    "LimitedLog",
    "Link",
    "LinkCondition",
    "LinkIdentity",
    "LinkSecurity",
    "LocalPeer",
    "OpenError",
    "PeerInfo",
    "PeerName",
    "Proxy",
    "Receiver",
    "RemoteCarrier",
    "Role",
    "Router",
    "SocketAddress",
    "Timings",
    "Tls",
    "Transport",
    "addresses",
    "connect",
    "decode_cbor",
    "interest_attribute",
    "interest_in",
    "interleaved",
    "is_key",
    "probe",
    "resolve",
]
