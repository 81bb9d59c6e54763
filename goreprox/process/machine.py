"""What this machine, or the container that this process is in, allows it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_UNLIMITED: Final = 1 << 60
"""Version 1 of control groups writes "no limit" as a number of pages above this."""
_LIMITS: Final = {"": "memory.max", "memory": "memory.limit_in_bytes"}
"""The file of the limit, by the controllers that a line of /proc/self/cgroup names: none is version 2."""
_ROOT: Final = Path("/")


def memory_limit_bytes(root: Path = _ROOT) -> int | None:
    """Return the memory that this process may use: the machine's, or less by a control group; None if it is unknown.

    A control group is bound by those above it, too (cgroups(7)). `root` is where /proc and /sys are.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if "SC_PHYS_PAGES" in os.sysconf_names else []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers not in _LIMITS:
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.strip("/")
        for each in (group, *group.parents):
            text = _text(each / _LIMITS[controllers]).strip()
            if text.isdigit() and int(text) < _UNLIMITED:
                limits.append(int(text))
            if each == top:
                break
    return min(limits, default=None)


def in_container(root: Path = _ROOT, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process seems to be in a container: Docker's, Podman's, Kubernetes', or systemd-nspawn."""
    return (
        (root / ".dockerenv").exists()
        or (root / "run/.containerenv").exists()
        or "KUBERNETES_SERVICE_HOST" in environ
        or "container" in environ
    )


def _text(path: Path) -> str:
    """Return the text of a file of the kernel; "" if there is none, or it is closed to this user."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
