"""Proof of death: a locked file by which a process learns that the one before it is gone.

Every process locks (`flock`) a file and writes its incarnation into it. The kernel drops the lock when the
process ends, however it ends. So whoever finds the lock free and an incarnation inside knows for certain that
this one is dead, and may say so: its streams need not wait for the grace. A lock that is held proves nothing.
That holds after a clean end, too, whose goodbye may have reached nobody.

    lock    content        what it means
    held    anything       alive (or a child of it is): try the next slot
    free    incarnation    dead: the predecessor
    free    empty          never used
    free    anything else  not ours to interpret: as empty

There is one file for each role, name and slot; several live processes of one name hold slots 0, 1, 2 and so
on. Knows files only; what an incarnation is for, the session knows.
"""

import contextlib
import fcntl
import os
import re
from pathlib import Path
from typing import Final, Self

from goreprox.errors import StartError, advice
from goreprox.process.files import prepare_directory

INCARNATION_BYTES: Final = 16
MAX_SLOTS: Final = 1024  # live processes of one role and name on one machine
_CONTENT: Final = re.compile(rb"([0-9a-f]{32})\n")


class Instance:
    """A held lock. Keep it for the life of the process."""

    def __init__(
        self, fd: int, path: Path, *, role: str, name: str, incarnation: bytes, predecessor: bytes | None
    ) -> None:
        self._fd: int | None = fd
        self.path: Final = path
        self.role: Final = role
        self.name: Final = name
        self.incarnation: Final = incarnation
        self.predecessor: Final = predecessor
        """The incarnation of the process that held this slot before, if one did."""

    @classmethod
    def acquire(cls, runtime_dir: Path, role: str, name: str, incarnation: bytes) -> Self:
        """Lock the first free slot of `role` and `name`, and leave `incarnation` (16 bytes) in it.

        The directory is made if it is missing (mode 0700). `role` and `name` become part of a file name.

        Raises:
            StartError: the directory cannot be used, is another user's or open to others, or all slots are
            taken.
        """
        assert len(incarnation) == INCARNATION_BYTES
        try:
            # The temporary folder is everybody's: somebody else may have made ours, or a link to another, before us.
            prepare_directory(runtime_dir, "--runtime-dir", follow=False)
            for slot in range(MAX_SLOTS):
                path = runtime_dir / f"{role}-{name}.{slot}"
                fd = _lock(path)
                if fd is not None:
                    predecessor = _exchange(fd, incarnation)
                    return cls(fd, path, role=role, name=name, incarnation=incarnation, predecessor=predecessor)
        except OSError as exc:
            raise StartError(
                f"runtime directory {runtime_dir}: {exc.strerror}; {advice(exc, '--runtime-dir')}"
            ) from exc
        raise StartError(f"name {name}: {MAX_SLOTS} processes of that name run here already; choose another name")

    def release(self) -> None:
        """Drop the lock, as the end of the process does. Again: no effect."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


def _lock(path: Path) -> int | None:
    """Open and lock `path`, or give None where somebody else holds the lock."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, fd):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # removed between opening and locking: the lock is on a file that nobody will find


def _is_still(path: Path, fd: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(fd))
    return False


def _exchange(fd: int, incarnation: bytes) -> bytes | None:
    """Put our incarnation into the locked file and give the one that was there."""
    # One byte more than expected shows that there is more. Killed between the two writes, we leave ours and a
    # tail of garbage: garbage again, never a wrong incarnation.
    match = _CONTENT.fullmatch(os.pread(fd, 2 * INCARNATION_BYTES + 2, 0))
    os.pwrite(fd, incarnation.hex().encode() + b"\n", 0)
    os.ftruncate(fd, 2 * INCARNATION_BYTES + 1)
    return bytes.fromhex(match[1].decode()) if match else None
