"""Programs that a measurement starts, and the CPU time and memory that they took."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from benchmarks.local import BenchmarkError

STOP_S: Final = 5.0  # from SIGTERM to SIGKILL


class Processes:
    """Programs that live as long as the context, with all that they start themselves."""

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        """Where their output goes; it must exist."""
        self.first_start: float | None = None
        """When the first one was started, by `time.monotonic`."""
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *command: str) -> None:
        """Start a program."""
        log = self.folder / f"{len(self._running)}-{Path(command[0]).name}.log"
        # Variables and files of the user must not change what is measured.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GOREPROX_")}
        if self.first_start is None:
            self.first_start = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        self._running.append((process, log))

    def check(self) -> None:
        """Raise BenchmarkError, with its last output, if one has ended."""
        for process, log in self._running:
            if process.poll() is not None:
                lines = log.read_text(errors="replace").split("\n")
                words = next((line for line in reversed(lines) if line.strip()), "it said nothing")
                raise BenchmarkError(f"{log.stem} ended: {words.strip()[:200]}")

    def cpu_s(self) -> float:
        """Return the CPU seconds, of user and kernel, that all of them took so far."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_bytes(self) -> dict[int, int]:
        """Return the resident memory of each, by pid."""
        found: dict[int, int] = {}
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                found[process.pid] = process.memory_info().rss
        return found

    def stop(self) -> None:
        """End them, and what they started."""
        tree = self._tree()
        for process in tree:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, alive = psutil.wait_procs(tree, timeout=STOP_S)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        for started, _ in self._running:
            started.wait()
        self._running.clear()

    def _tree(self) -> list[psutil.Process]:
        tree: list[psutil.Process] = []
        for started, _ in self._running:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(started.pid)
                tree += [process, *process.children(recursive=True)]
        return tree


@contextlib.contextmanager
def folder_of(parent: Path, name: str) -> Iterator[Path]:
    """Make a folder for one start of a side, and remove it afterwards."""
    folder = parent / name
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
