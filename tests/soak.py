"""Soak: everything that draws its own input, with fresh seeds, in turns, for `SOAK_S` seconds (600 unless told).

Prints each run as it ends, then sums; a failure with the command that replays it. The exit code is 1 after any.
"""

import importlib.util
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

TURN_S = 60
"""What one run takes, about: of chaos it is one seed."""
HANG_S = 900
"""A run that takes so much longer hangs."""
LOAD_FROM_S = 1800
"""A soak of this length or more also measures the load that the documents promise."""
LOAD = ["pytest", "-q", "-rP", "tests/e2e/test_load.py", "tests/e2e/test_limits.py"]
PROPERTIES = ["pytest", "-q", "tests/unit", "tests/sim/test_machine.py"]
COUNTED = re.compile(
    r"(\d+) (simulated s|faults|bytes checked|streams|clients|inputs|passed)(?=,|\n| \(| in | reached)"
)


def runs(left_s: float) -> Iterator[list[str]]:
    """Give commands without end, each with seeds that nobody has tried."""
    turn = str(int(min(TURN_S, max(left_s / 4, 10))))
    if left_s >= LOAD_FROM_S:
        yield LOAD
    fuzzing = importlib.util.find_spec("atheris") is not None
    if not fuzzing:
        sys.stdout.write("without fuzzing: atheris is not installed\n")
    while True:
        seed = random.randrange(10**9)
        yield ["tests.e2e.chaos", str(seed)]
        yield ["tests.sim", f"{seed}-", "--seconds", turn]
        if fuzzing:
            yield ["tests.fuzz", "--seconds", turn]
        yield PROPERTIES
        yield ["tests.sim.sessions", str(seed), str(seed + 10**6), "--seconds", turn]


def main() -> int:
    """Run until the time is over, as many at once as there are processors, at most two."""
    seconds = float(os.environ.get("SOAK_S", "600"))
    os.environ["HYPOTHESIS_PROFILE"] = "fresh"
    began = time.monotonic()
    sums: Counter[str] = Counter()
    failures: list[str] = []

    def one(arguments: list[str]) -> None:
        if time.monotonic() - began >= seconds:
            return
        command = [sys.executable, "-m", *arguments]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=TURN_S + HANG_S,
                env=os.environ | {"LOAD": "full"},
                check=False,
            )
            code, said = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            code, said = -1, "hangs"
        sums["runs"] += 1
        for count, what in COUNTED.findall(said):
            sums[f"{what} ({arguments[0]})"] += int(count)
        sys.stdout.write(f"python -m {' '.join(arguments)}\n{_indented(said)}")
        if code:
            failures.append(f"python -m {' '.join(arguments)}: code {code}\n{_indented(said)}")
        sys.stdout.flush()

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 2)) as pool:
        waiting = []
        for arguments in runs(seconds):
            if time.monotonic() - began >= seconds:
                break
            waiting.append(pool.submit(one, arguments))
            while sum(not future.done() for future in waiting) >= 2 and time.monotonic() - began < seconds:
                time.sleep(0.2)
        for future in waiting:
            future.result()
    sys.stdout.write(f"\nsoak of {timedelta(seconds=round(time.monotonic() - began))}\n")
    for what, count in sorted(sums.items()):
        hours = f" ({count / 3600:.1f} h)" if what.startswith("simulated") else ""
        sys.stdout.write(f"{count:>16,} {what}{hours}\n")
    sys.stdout.write(f"{len(failures):>16,} failures\n")
    for failure in failures:
        sys.stdout.write(f"FAILED {failure}")
    return 1 if failures else 0


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main())
