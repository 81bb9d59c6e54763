"""Violations of the protocol, ours and the peer's."""


class ProtocolError(Exception):
    """Base of both kinds."""


class LocalProtocolError(ProtocolError):
    """Our own code did what the state does not allow: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow; its session ends, and nothing else."""
