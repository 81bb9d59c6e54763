"""Violations of the protocol, ours and the peer's; and of the form of an export."""


class ProtocolError(Exception):
    """Base of all kinds."""


class LocalProtocolError(ProtocolError):
    """Our own code did what the state does not allow: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow; its session ends, and nothing else."""


class ExportError(ProtocolError):
    """What was exported cannot be restored: another version wrote it, or it is damaged."""
