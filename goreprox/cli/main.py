"""The command line: every error is one line, and says what to do."""

import contextlib
import errno
import os
import sys
from collections.abc import Sequence

from cyclopts import CycloptsError

from goreprox.cli.app import app
from goreprox.cli.sources import forget_empty_variables
from goreprox.cli.usage import explain
from goreprox.errors import ConfigError, GoreproxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: the process's own) ask for, and return the exit code.

    0: done. 1: it could not run. 2: an option, a variable or a key of the file is wrong.
    """
    if sys.platform == "win32":
        return _fail("Windows is not supported; run it on Linux or macOS, or in WSL", 1)
    forget_empty_variables()
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        role = app(given)
        if role is not None:
            role.run(given)
        sys.stdout.flush()
    except GoreproxError as exc:
        return _fail(str(exc), exc.exit_code)
    except CycloptsError as exc:
        return _fail(explain(exc), ConfigError.exit_code)
    except OSError as exc:
        return _cannot_write(exc)
    return 0


def _cannot_write(exc: OSError) -> int:
    """Report that standard output cannot be written.

    Raises:
        OSError: it is another error.
    """
    if exc.filename is not None or exc.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO):
        raise exc
    with contextlib.suppress(OSError):  # or the interpreter tries, and fails, to write the rest as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _fail(f"cannot write to the standard output: {exc.strerror}", 1)


def _fail(message: str, code: int) -> int:
    from goreprox.process.log import say  # noqa: PLC0415 -- takes long, and few commands fail

    say(f"goreprox: {message}")
    return code
