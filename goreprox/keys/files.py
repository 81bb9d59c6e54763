"""Files that nobody else may read, and directories that nobody else may change. Knows nothing of what is in them."""

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from goreprox.errors import StartError

MAX_BYTES: Final = 65_536


def prepare_directory(path: Path) -> None:
    """Make a directory (mode 0700) if it is missing; accept it only if it is ours and closed to the writing of others.

    Raises:
        StartError: it is not; the message has the command that repairs it.
        OSError: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StartError(f"{path}: not a directory; name another with --state-dir") from None
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise StartError(f"{path}: belongs to user {status.st_uid}, not {os.geteuid()}; name one of your own")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StartError(f"{path}: others may write to it; chmod 700 {path}")


def become_owner(directory: Path) -> Path:
    """Let root go on as the owner of a directory, for the rest of this process; return the directory to use instead.

    So what is written is the owner's, and links that he put there lead to nothing that he could not change himself. The
    directory becomes the working directory: its owner may not be able to reach it from the root (/var/lib/private of
    systemd is root's alone). Others than root change nothing.
    """
    if os.geteuid() != 0:
        return directory
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return directory
    try:
        status = os.fstat(descriptor)
        if status.st_uid == 0:
            return directory
        os.fchdir(descriptor)
    finally:
        os.close(descriptor)
    os.setgroups([])
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    return Path()


def read_secret(path: Path, *, begins: str = "") -> str:
    """Return the text of a file; what is no regular file, a pipe for instance, is taken as it is.

    Raises:
        StartError: it does not begin so, others may read it, it is too long or not text; the message has the command
            that repairs it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        content = file.read(MAX_BYTES + 1)
    # Before its mode: a command that changes the mode is to be given for files of ours only.
    if not content.lstrip().startswith(begins.encode()):
        raise StartError(f"{path}: expected {begins}…, but it begins with something else; name the right file")
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077 and not _is_credential(path):
        raise StartError(f"{path}: others may read it; chmod 600 {path}")
    try:
        text = content.decode("ascii")
    except ValueError:
        text = None
    if text is None or len(content) > MAX_BYTES:
        raise StartError(f"{path}: not a file of ours; look at what it is, and move it away")
    return text


def _is_credential(path: Path) -> bool:
    """Whether systemd keeps the file for us alone: in a closed directory, with a list that looks like open modes."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return directory is not None and path.parent == Path(directory)


def signature(path: Path) -> tuple[int, ...] | None:
    """Return what differs once a file has changed; None if it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode


def write_secret(path: Path, text: str, *, replace: bool = False, like: os.stat_result | None = None) -> None:
    """Write a file such that it is there whole or not at all, also after a power cut.

    It is ours alone (mode 0600), or has the owner and the mode of what it is `like`.

    Raises:
        FileExistsError: it is there already, and not to be replaced.
        OSError: it cannot be written.
    """
    # Not mkstemp, which goes to the directory by way of the root, where its owner may not pass (`become_owner`).
    temporary = path.parent / f".new-{secrets.token_hex(8)}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            if like is not None:
                os.fchown(file.fileno(), like.st_uid, like.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
            os.fsync(file.fileno())
        if replace:
            temporary.rename(path)
        else:
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make what was renamed or removed in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only one who changes a directory; others wait."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
