"""A value read from files, and read again when one of them has changed."""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from goreprox.errors import GoreproxError

T = TypeVar("T")
_TRANSIENT: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)
_Signature = tuple[int, ...] | None


class Reloaded(Generic[T]):
    """Holds the value; `refresh` keeps it current. Looking costs about a microsecond a file."""

    def __init__(self, paths: Callable[[], Sequence[Path]], read: Callable[[Sequence[Path]], T], value: T) -> None:
        """Hold `value` until the first `refresh`, which reads the files that `paths` returns."""
        self.value = value
        self._paths = paths
        self._read = read
        self._seen: list[tuple[Path, _Signature]] | None = None

    def refresh(self) -> bool:
        """Read the files if they have changed; return whether they had. On an error the value stays as it is.

        Raises:
            GoreproxError: they are not what they should be. They are read again once they have changed, or by the next
                call if the cause is transient.
            OSError: they cannot be read; the next call tries again.
        """
        paths = self._paths()
        seen = [(path, _signature(path)) for path in paths]
        if seen == self._seen:
            return False
        try:
            self.value = self._read(paths)
        except GoreproxError as exc:
            if not is_transient(exc.__cause__):
                self._seen = seen
            raise
        self._seen = seen
        return True


def is_transient(exc: BaseException | None) -> bool:
    """Return whether an error says nothing about a file, such as that no descriptor is left."""
    return isinstance(exc, OSError) and exc.errno in _TRANSIENT


def _signature(path: Path) -> _Signature:
    """Return what differs once a file, its owner or its mode has changed; None if there is nothing to look at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns, status.st_size
