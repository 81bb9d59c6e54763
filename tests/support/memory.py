"""A limit of the memory of a process and its children, all that is charged to them: a cgroup of its own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

V1: Final = Path("/sys/fs/cgroup/memory")
V2: Final = Path("/sys/fs/cgroup")


class Limited:
    """A cgroup, of version 1 or 2."""

    def __init__(self, path: Path, *, usage: str, limit: str) -> None:
        self._path, self._usage, self._limit = path, path / usage, path / limit
        self.before: Final = ("sh", "-c", f'echo $$ >{path}/cgroup.procs; exec "$@"', "sh")
        """Goes before a command that is to run in it."""

    @property
    def used_bytes(self) -> int:
        """What is charged now."""
        return int(self._usage.read_text())

    def limit(self, most_bytes: int) -> None:
        """Have whoever exceeds this killed, caches of files not counted."""
        self._limit.write_text(str(most_bytes))


@contextlib.contextmanager
def limited() -> Iterator[Limited]:
    """Make a cgroup, for which one has to be root; all that runs in it must have ended before this context ends."""
    is_v1 = (V1 / "memory.limit_in_bytes").exists()
    path = Path(mkdtemp(prefix="goreprox-test-", dir=V1 if is_v1 else V2))
    try:
        if is_v1:
            yield Limited(path, usage="memory.usage_in_bytes", limit="memory.limit_in_bytes")
        else:
            yield Limited(path, usage="memory.current", limit="memory.max")
    finally:
        path.rmdir()
