"""Ports of loopback, programs and descriptors of this machine. Standard library only."""

import contextlib
import os
import random
import resource
import shutil
import socket
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
START_S: Final = 15.0
POLL_S: Final = 0.002
# Below the ports that kernels hand out to clients (32768 on Linux), so that no connection has taken one; from anywhere,
# so that two runs at once rarely meet.
_PORTS: Final = range(20_000, 32_000)
_turn: Final = count(random.randrange(len(_PORTS)))


class BenchmarkError(Exception):
    """A side, a target or a load failed. The message says which, and why."""


def free_port() -> int:
    """Return a port that is free, and that this run has not used for long."""
    for _ in _PORTS:
        port = _PORTS[next(_turn) % len(_PORTS)]
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind((HOST, port))
            return port
    raise BenchmarkError(f"no port from {_PORTS[0]} to {_PORTS[-1]} is free")


def raise_descriptor_limit() -> int:
    """Let this process, and what it starts, open as many files as they may; return how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def wait_for_listener(host: str, port: int, check: Callable[[], None] = lambda: None) -> None:
    """Wait until `port` takes connections. `check` raises if there is nothing to wait for any more."""
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        check()
        time.sleep(POLL_S)  # nothing to be told by: another program is starting
    raise BenchmarkError(f"nothing listens on {host}:{port} within {START_S:g} s")


def prefer(folder: Path) -> None:
    """Look for programs in `folder` before those on PATH."""
    os.environ["PATH"] = f"{folder.resolve()}{os.pathsep}{os.environ['PATH']}"


def find(program: str) -> str | None:
    """Return where a program is, or None; servers may be in folders that are not on a user's PATH."""
    built = str(Path(__file__).parents[1] / "build/bin")  # where .ci/run puts programs that it builds
    more = os.pathsep.join(("/usr/sbin", "/usr/local/sbin", "/sbin", "/opt/homebrew/sbin", built))
    return shutil.which(program) or shutil.which(program, path=more)
