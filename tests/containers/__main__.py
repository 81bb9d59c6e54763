"""`python -m tests.containers [PYTEST-ARGUMENTS]`: run the tests in containers, then remove whatever was made for them.

All work is that of another process (work.py). This one waits for it, ends it on Ctrl-C, SIGTERM or SIGHUP, and cleans
up. It takes signals only while it waits, so none can come between making something and knowing of it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import docker
from docker.errors import APIError, NotFound

from tests.containers import engine
from tests.containers.cluster import IMAGE, NATS, PREFIX, TOOLS

ROOT: Final = Path(__file__).parents[2]
SIGNALS: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def remove(action: Callable[[], object]) -> None:
    """Do what may be done already; what cannot be done is said."""
    try:
        action()
    except APIError as exc:
        if not isinstance(exc, NotFound):
            sys.stderr.write(f"left behind: {exc.explanation}\n")


def clean() -> None:
    """Take what bears our names away from an engine that stays."""
    with contextlib.closing(docker.from_env(timeout=300)) as client:
        ours: dict[str, str | list[str] | bool] = {"name": PREFIX}
        for container in client.containers.list(all=True, filters=ours, ignore_removed=True):
            remove(partial(container.remove, force=True, v=True))
        for network in client.networks.list(filters=ours):
            remove(network.remove)
        for volume in client.volumes.list(filters=ours):
            remove(partial(volume.remove, force=True))
        for image in (IMAGE, NATS, TOOLS):
            remove(partial(client.images.remove, image, force=True))


def supervise(command: list[str]) -> int:
    """Run a command to its end, or to the first signal that we get; return its exit code."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
    code = 0
    while process.poll() is None:
        number = signal.sigwait({signal.SIGCHLD, *SIGNALS})
        if number != signal.SIGCHLD:
            code = 128 + number
            os.killpg(process.pid, signal.SIGKILL)
    return code or process.returncode


def main() -> int:
    """Return what pytest returns."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *SIGNALS})
    work = [sys.executable, "-m", "tests.containers.work"]
    with tempfile.TemporaryDirectory(prefix=PREFIX) as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        if engine.responds():
            stack.callback(clean)
            return supervise([*work, temporary, *sys.argv[1:]])
        engine.prepare()
        stack.callback(engine.clean, directory)
        return supervise([*engine.enclosed(directory), *work, "--own-engine", temporary, *sys.argv[1:]])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except engine.NoEngineError as exc:
        sys.exit(f"test-containers: {exc}")
