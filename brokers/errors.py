"""Errors of the fabric."""


class FabricError(Exception):
    """Base of all errors of the fabric."""


class BadName(FabricError):
    """A name or routing id that is malformed, or not that of the peer that uses it."""


class BadMessage(FabricError):
    """A malformed message; it is dropped."""


class BindError(FabricError, OSError):
    """An address cannot be listened on; `errno` says why."""
