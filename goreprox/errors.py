"""What can keep Goreprox from running, as a user is told of it: in one line, without a traceback.

Knows only messages and exit codes. A message names the thing, the cause and the next step:
`listen 0.0.0.0:8080: the port is in use; stop the other program or choose another port with --listen`.
"""

import errno
from typing import ClassVar


class GoreproxError(Exception):
    """Whatever ends a command; `str()` of it is the one line that the user sees."""

    exit_code: ClassVar[int] = 1


class ConfigError(GoreproxError):
    """An option, a variable or a key of the file is wrong; nothing has been started."""

    exit_code: ClassVar[int] = 2


class StartError(GoreproxError):
    """The configuration is sound, but this machine cannot do what it asks for."""

    exit_code: ClassVar[int] = 1


class StatusError(GoreproxError):
    """A running process was asked for its status in vain, or there is none."""

    exit_code: ClassVar[int] = 1


def advice(exc: OSError, option: str) -> str:
    """Say what to do about a directory, the value of `option`, that cannot be written."""
    match exc.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"free some space, or name another with {option}"
        case errno.ENOTDIR | errno.EEXIST:
            return f"it is not a directory; name another with {option}"
        case _:
            return f"make it writable for this user, or name another with {option}"
