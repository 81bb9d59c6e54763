"""What can go wrong in the protocol."""


class ProtocolError(Exception):
    """Base of both kinds."""


class LocalProtocolError(ProtocolError):
    """Our own code asked for what the state does not allow: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow; its session ends, nothing else does."""
