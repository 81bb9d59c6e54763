"""Proof of death: a locked file by which a process learns that its predecessor is dead.

Every process locks (`flock`) a file and writes its incarnation into it. The kernel releases the lock when the process
ends, however it ends. So a process that finds the lock free and an incarnation inside knows for certain that this one
is dead, and may announce it: its streams need not wait for the grace. A lock that is held proves nothing. This holds
after a clean end, too, whose goodbye may not have arrived.

    lock    content        what it means
    held    anything       alive (or a child of it is): try the next slot
    free    incarnation    dead: the predecessor
    free    empty          never used
    free    anything else  not written by us: treated as empty

There is one file for each role, name and slot; several live processes of one name hold slots 0, 1, 2 and so on.
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
    """A lock that is held, as long as the process lives."""

    def __init__(
        self, fd: int, path: Path, *, role: str, name: str, incarnation: bytes, predecessor: bytes | None
    ) -> None:
        self._fd: int | None = fd
        self.path: Final = path
        self.role: Final = role
        self.name: Final = name
        self.incarnation: Final = incarnation
        self.predecessor: Final = predecessor
        """The incarnation of the process that held this slot before; None if there was none."""

    @classmethod
    def acquire(cls, runtime_dir: Path, role: str, name: str, incarnation: bytes) -> Self:
        """Lock the first free slot of `role` and `name`, and write `incarnation` (16 bytes) into it.

        The directory is created if it is missing (mode 0700). `role` and `name` become part of a file name.

        Raises:
            StartError: the directory cannot be used, belongs to another user or is open to others, or all slots are
                taken.
        """
        assert len(incarnation) == INCARNATION_BYTES
        try:
            # In the temporary directory another user may have created ours, or a symbolic link, before.
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

    @property
    def descriptor(self) -> int:
        """That of the locked file."""
        assert self._fd is not None
        return self._fd

    def detach(self) -> int:
        """Leave the lock to the code that takes over; return its descriptor."""
        assert self._fd is not None
        fd, self._fd = self._fd, None
        return fd

    def release(self) -> None:
        """Release the lock, as the end of the process does. Idempotent."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


def _lock(path: Path) -> int | None:
    """Open and lock `path`; return None if another process holds the lock."""
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
        os.close(fd)  # removed between opening and locking: nobody will find this file


def _is_still(path: Path, fd: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(fd))
    return False


def _exchange(fd: int, incarnation: bytes) -> bytes | None:
    """Write our incarnation into the locked file; return the one that it had."""
    # Reads one byte more than expected, to see whether there is more. If the process is killed between the two writes,
    # its incarnation is followed by garbage: then it is ignored, and never taken for another one.
    match = _CONTENT.fullmatch(os.pread(fd, 2 * INCARNATION_BYTES + 2, 0))
    os.pwrite(fd, incarnation.hex().encode() + b"\n", 0)
    os.ftruncate(fd, 2 * INCARNATION_BYTES + 1)
    return bytes.fromhex(match[1].decode()) if match else None
