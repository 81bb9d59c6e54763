"""Files that can be trusted: only this user and root can have written them, and no other can read secrets.

Every file and directory that decides anything (keys, join strings, tokens, certificates, configuration, locks) is
opened here, and checked by its descriptor, so that what was checked is what is read.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from goreprox.errors import StartError

MAX_BYTES: Final = 65_536
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_ROOT: Final = 0
_DOCKER_SECRETS: Final = Path("/run/secrets")
_KUBERNETES_LINK: Final = "..data"
"""In each directory of a mounted Secret or ConfigMap: a link to the directory of its present version."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is expected to be."""

    what: str
    """A noun with its article, for messages."""
    secret: bool = False
    """Whether other users must not be able to read it."""
    sign: str = ""
    """A text that every file of this kind contains."""
    encoding: str = "ascii"
    most_bytes: int = MAX_BYTES
    piped: bool = False
    """Whether it may be a pipe, which may block."""


def prepare_directory(path: Path, option: str = "--state-dir", *, follow: bool = True) -> None:
    """Create a directory (mode 0700) if it is missing; require that it is ours and that no other user may write to it.

    Without `follow` it must not be a symbolic link, which others may have created where they may create files, except
    one of root, as systemd creates for a dynamic user.

    Raises:
        StartError: it is not; the message has the command that repairs it.
        OSError: it cannot be created.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StartError(f"{path}: not a directory; name another with {option}") from None
    check_directory(path, option, follow=follow)


def check_directory(path: Path, option: str, *, follow: bool = True) -> None:
    """Require what `prepare_directory` does of a directory, without creating it.

    Raises:
        StartError: it is not so; the message has the command that repairs it.
        OSError: it cannot be looked at.
    """
    status = path.stat(follow_symlinks=follow)
    if stat.S_ISLNK(status.st_mode) and status.st_uid == 0 != os.geteuid():
        status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise StartError(f"{path}: not a directory; name another with {option}")
    if status.st_uid != os.geteuid():
        raise StartError(
            f"{path}: belongs to user {status.st_uid}, not {os.geteuid()}; name one of your own with {option}"
        )
    if status.st_mode & _OTHERS_WRITE:
        raise StartError(f"{path}: others may write to it; chmod 700 {path}")


def become_owner(directory: Path) -> Path:
    """Change from root to the owner of a directory, until the process ends; return the path to use instead.

    So files that are written belong to the owner, and symbolic links that the owner has put there lead to nothing that
    the owner could not change anyway. The directory becomes the working directory, since its owner may not be able to
    reach it from the root (systemd's /var/lib/private is closed to others). Does nothing unless this user is root.
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


def read_file(path: Path, kind: FileKind) -> str:
    """Return the text of a file that can be trusted.

    Raises:
        StartError: it cannot be, or is not of that kind; the message has the command that repairs it.
        OSError: it cannot be read.
    """
    with opened(path, kind) as (_, text):
        return text


@contextlib.contextmanager
def opened(path: Path, kind: FileKind) -> Iterator[tuple[int, str]]:
    """Keep a file open that can be trusted; yield its descriptor and its text.

    Raises:
        StartError: it cannot be, or is not of that kind; the message has the command that repairs it.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | (0 if kind.piped else os.O_NONBLOCK))
    try:
        status = os.fstat(descriptor)
        if not kind.piped and not stat.S_ISREG(status.st_mode):
            raise StartError(f"{path}: not a regular file, expected {kind.what}; name the right one")
        mounted = _is_mounted_secret(path)
        if status.st_uid not in (os.geteuid(), _ROOT) and not mounted:
            raise StartError(
                f"{path}: belongs to user {status.st_uid}, who could change it; expected {kind.what} of user "
                f"{os.geteuid()} or of root: look at what is in it, and copy or chown it"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(kind.most_bytes + 1)
        text = _text(path, content, kind)  # before the mode: what is something else entirely needs no other mode
        if stat.S_ISREG(status.st_mode):
            if not mounted:
                _check_mode(path, status, kind)
            os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor, text
    finally:
        os.close(descriptor)


def _text(path: Path, content: bytes, kind: FileKind) -> str:
    if len(content) > kind.most_bytes:
        raise StartError(f"{path}: more than {kind.most_bytes:,} bytes, expected {kind.what}; name the right file")
    try:
        text = content.decode(kind.encoding)
    except ValueError:
        raise StartError(f"{path}: not a text, expected {kind.what}; name the right file") from None
    if kind.sign and not text.strip():
        raise StartError(f"{path}: empty, expected {kind.what}; name the right file")
    if kind.sign not in text:
        raise StartError(f"{path}: not {kind.what}; name the right file")
    return text


def _check_mode(path: Path, status: os.stat_result, kind: FileKind) -> None:
    if status.st_mode & _OTHERS_WRITE:
        raise StartError(f"{path}: others may write to it; chmod go-w {path}")
    if not kind.secret or _is_kubernetes(path):
        return
    if status.st_uid == os.geteuid():
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise StartError(f"{path}: others may read it; chmod 600 {path}")
    elif status.st_mode & stat.S_IRWXO:  # it is root's, who may have given it to our group
        raise StartError(f"{path}: others may read it; chmod o= {path}")


def _is_mounted_secret(path: Path) -> bool:
    """Return whether systemd or a container engine protects the file, whatever its owner and mode.

    systemd keeps credentials in a directory that is closed to others, with an access control list that looks like an
    open mode. Docker mounts secrets, which may belong to another user of the host, into a directory of root.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory is not None and path.parent == Path(directory):
        return True
    if path.parent != _DOCKER_SECRETS:
        return False
    status = _DOCKER_SECRETS.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == _ROOT and not status.st_mode & _OTHERS_WRITE


def _is_kubernetes(path: Path) -> bool:
    """Return whether the file is in a volume of a Kubernetes Secret, which by default all in the container may read."""
    link = path.parent / _KUBERNETES_LINK
    return link.is_symlink() and link.lstat().st_uid == _ROOT


def write_secret(path: Path, text: str, *, replace: bool = False, like: os.stat_result | None = None) -> None:
    """Write a file atomically, even if the power fails.

    Only this user can access it (mode 0600), unless it gets the owner and the mode of another file: `like`.

    Raises:
        FileExistsError: it exists, and is not to be replaced.
        OSError: it cannot be written.
    """
    # Not mkstemp, which makes the path absolute: the owner may not be able to reach it so (`become_owner`).
    temporary = path.parent / f".new-{secrets.token_hex(8)}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("ascii"))
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


def overwrite(path: Path, text: str) -> bool:
    """Overwrite a file in place, for a disk that is full; return False if the file is too short for that.

    The rest is filled with line feeds in the same write, so that no reader sees the old end. Unlike `write_secret` it
    may leave a mixture of old and new if the power fails.
    """
    with path.open("r+b", buffering=0) as file:
        old, new = os.fstat(file.fileno()).st_size, text.encode("ascii")
        if len(new) > old:
            return False
        if os.pwrite(file.fileno(), new.ljust(old, b"\n"), 0) != old:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        os.ftruncate(file.fileno(), len(new))
        os.fsync(file.fileno())
    return True


def sync_directory(path: Path) -> None:
    """Make renamed and removed files of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a directory, for which other processes that change it wait."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
