"""Soak: what draws its own input, with fresh seeds, in turns, two at a time, for `SOAK_S` seconds (600 unless told).

`python -m tests.soak [PART ...]`; all parts if none. Prints each run as it ends, then sums; a failure with the
command that replays it. The exit code is 1 after any.
"""

import argparse
import importlib.util
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta

AT_ONCE = 2
TURN_S = 60
"""What one run takes, about: of chaos it is one seed."""
HANG_S = 900
"""A run that takes so much longer hangs."""
LOAD_FROM_S = 1800
"""A soak of all parts, of this length or more, also measures the load that the documents promise."""
LOAD = ["pytest", "-q", "-rP", "tests/e2e/test_load.py", "tests/e2e/test_limits.py", "tests/e2e/test_descriptors.py"]
PARTS: dict[str, Callable[[int, str], list[str]]] = {
    "chaos": lambda seed, _: ["tests.e2e.chaos", str(seed)],
    "siege": lambda seed, seconds: ["tests.e2e.siege", str(seed), "--seconds", seconds],
    "sim": lambda seed, seconds: ["tests.sim", f"{seed}-", "--seconds", seconds],
    "fuzz": lambda _, seconds: ["tests.fuzz", "--seconds", seconds],
    "properties": lambda *_: ["pytest", "-q", "tests/unit", "tests/sim/test_machine.py"],
    "sessions": lambda seed, seconds: ["tests.sim.sessions", str(seed), str(seed + 10**6), "--seconds", seconds],
}
"""The command of a run, from its first seed and how many seconds it is to take."""
COUNTED = re.compile(
    r"(\d+) (simulated s|faults|bytes checked|streams|clients|inputs|passed)(?=,|\n| \(| in | reached)"
)


def runs(parts: list[str], seconds: float) -> Iterator[list[str]]:
    """Give commands without end, each with seeds that nobody has tried."""
    turn = str(int(min(TURN_S, max(seconds * AT_ONCE / len(parts), 10))))
    if parts == list(PARTS) and seconds >= LOAD_FROM_S:
        yield LOAD
    if "fuzz" in parts and importlib.util.find_spec("atheris") is None:
        sys.stdout.write("without fuzzing: atheris is not installed\n")
        parts.remove("fuzz")
    while True:
        seed = random.randrange(10**9)
        for part in parts:
            yield PARTS[part](seed, turn)


class Soak:
    """Runs, one after the other, until the time is over; and what came of them."""

    def __init__(self, parts: list[str], seconds: float) -> None:
        self.began = time.monotonic()
        self.sums: Counter[str] = Counter()
        self.failures: list[str] = []
        self._end = self.began + seconds
        self._runs = runs(parts, seconds)
        self._lock = threading.Lock()

    def work(self) -> None:
        """Do runs until the time is over; several threads may."""
        while time.monotonic() < self._end:
            with self._lock:
                arguments = next(self._runs)
            code, said = _run(arguments)
            with self._lock:
                self._note(arguments, code, said)

    def _note(self, arguments: list[str], code: int, said: str) -> None:
        self.sums["runs"] += 1
        for count, what in COUNTED.findall(said):
            self.sums[f"{what} ({arguments[0]})"] += int(count)
        text = f"python -m {' '.join(arguments)}: code {code}\n" + "".join(
            f"    {line}\n" for line in said.splitlines()
        )
        sys.stdout.write(text)
        sys.stdout.flush()
        if code:
            self.failures.append(text)

    def __str__(self) -> str:
        lines = [f"soak of {timedelta(seconds=round(time.monotonic() - self.began))}"]
        for what, count in sorted(self.sums.items()):
            hours = f" ({count / 3600:.1f} h)" if what.startswith("simulated") else ""
            lines.append(f"{count:>16,} {what}{hours}")
        return "\n".join([*lines, f"{len(self.failures):>16,} failures\n"])


def _run(arguments: list[str]) -> tuple[int, str]:
    """Return the exit code of a command, and what it said."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            capture_output=True,
            text=True,
            timeout=TURN_S + HANG_S,
            env=os.environ | {"LOAD": "full", "HYPOTHESIS_PROFILE": "fresh"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, "hangs"
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    """Soak; say what was done, and what failed once more."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    soak = Soak(parts, float(os.environ.get("SOAK_S", "600")))
    workers = [threading.Thread(target=soak.work, name=f"worker {index}") for index in range(AT_ONCE)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.stdout.write(f"\n{soak}")
    for failure in soak.failures:
        sys.stdout.write(f"FAILED {failure}")
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
