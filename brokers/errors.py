"""What can go wrong in the fabric."""


class FabricError(Exception):
    """Base of all errors of the fabric."""


class BadName(FabricError):
    """A name or routing id that no peer of ours would have."""


class BadMessage(FabricError):
    """A peer sent what the fabric does not understand; the message is dropped."""


class BindError(FabricError, OSError):
    """An address cannot be listened on. `errno` says why."""
