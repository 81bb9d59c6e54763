"""Why a link is down."""

import enum


class Cause(enum.Enum):
    """Why a link is down. The value is the field `cause` of log lines."""

    UNRESOLVED = "unresolved"
    """The host name has no address."""
    UNREACHABLE = "unreached"
    """There is no connection."""
    PROXY_UNREACHABLE = "proxy unreached"
    """There is no connection to the proxy."""
    PROXY_PASSWORD = "proxy password"  # noqa: S105 -- none
    """The proxy wants a password, or another one."""
    PROXY_REFUSED = "proxy refused"
    """The proxy does not allow the connection."""
    PROXY_FAILED = "proxy failed"
    """The proxy is silent, disconnects or speaks another protocol."""
    TLS = "tls"
    """There is no TLS with what responds."""
    CERTIFICATE = "certificate"
    """The broker's certificate is not accepted."""
    TLS_PORT = "tls port"
    """The broker's port speaks TLS, and we do not."""
    SILENT = "silent"
    """Something accepts connections and sends nothing."""
    STALLED = "stalled"
    """The same, though the link has been up before."""
    OTHER_PROTOCOL = "other protocol"
    """Something does not speak ZMTP."""
    PLAINTEXT = "no keys"
    """The broker has no keys, and we have."""
    CURVE = "keys"
    """The broker demands keys, and we have none."""
    OTHER_KEY = "other key"
    """The broker has another key than we expect."""
    UNKNOWN_KEY = "unknown key"
    """The broker rejects our key."""
    SLOW = "slow"
    """Handshakes time out."""
    REFUSED = "refused"
    """The broker refused our hello, or has revoked our key."""
    MALFORMED = "malformed"
    """The broker sent a message that no broker would send."""


OF_PROXY = frozenset((Cause.PROXY_UNREACHABLE, Cause.PROXY_PASSWORD, Cause.PROXY_REFUSED, Cause.PROXY_FAILED))
"""Those that say nothing about the broker."""
