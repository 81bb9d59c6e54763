"""Errors that end a command: one line for the user, without a traceback.

A message names the thing, the cause and the next step:
`listen 0.0.0.0:8080: the port is in use; stop the other program or choose another port with --listen`.
"""

import errno
from typing import ClassVar


class GoreproxError(Exception):
    """An error that ends a command; `str()` of it is the line that the user sees."""

    exit_code: ClassVar[int] = 1


class ConfigError(GoreproxError):
    """An option, a variable or a key of the file is wrong; nothing has been started."""

    exit_code: ClassVar[int] = 2


class StartError(GoreproxError):
    """The configuration is valid, but this machine cannot do what it asks for."""

    exit_code: ClassVar[int] = 1


class ControlError(GoreproxError):
    """A running process could not be asked for something, or has refused, or there is none."""

    exit_code: ClassVar[int] = 1


def advice(exc: OSError, option: str) -> str:
    """Return what to do about a directory, the value of `option`, that cannot be written to."""
    match exc.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"free some space, or name another with {option}"
        case errno.ENOTDIR | errno.EEXIST:
            return f"it is not a directory; name another with {option}"
        case _:
            return f"make it writable for this user, or name another with {option}"
