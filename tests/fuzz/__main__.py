"""Fuzz outside input, guided by coverage (atheris, libFuzzer).

`python -m tests.fuzz [TARGET ...] --seconds N` shares the time among the targets. A finding is printed with the
command that replays it, which needs no fuzzer: `python -m tests.fuzz TARGET --hex INPUT`.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from tests.fuzz import corpus

SLOW_S = 10
"""An input that takes longer is a defect."""
RSS_MIB = 1024
"""So is one that needs more memory, including the fuzzer's."""


def main() -> int:
    """Fuzz or replay; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(corpus.TARGETS)}; all if none")
    parser.add_argument("--seconds", type=int, default=60, help="in all")
    parser.add_argument("--hex", help="replay this input")
    parser.add_argument("--keep", action="store_true", help="add to the corpus what reached new code")
    options = parser.parse_args()
    targets = options.targets or corpus.TARGETS
    if options.hex is not None:
        importlib.import_module("tests.fuzz.targets").TARGETS[targets[0]](bytes.fromhex(options.hex))
        return 0
    atheris = importlib.import_module("atheris")
    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["goreprox", "brokers"]):
        importlib.import_module("tests.fuzz.targets")
    share = max(options.seconds // len(targets), 1)
    return 0 if all(_fuzz(target, share, keep=options.keep) for target in targets) else 1


def _fuzz(target: str, seconds: int, *, keep: bool) -> bool:
    """Fuzz one target in a process of its own, report what it did, and return whether it found nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "inputs").mkdir()
        for index, data in enumerate(corpus.load(target)):
            (folder / "inputs" / f"{index:05}").write_bytes(data)
        began = time.monotonic()
        sys.stdout.flush()
        child = os.fork()
        if not child:
            _be_the_fuzzer(target, folder, seconds)
        status = os.waitpid(child, 0)[1]
        log = (folder / "log").read_text(errors="replace")
        executed = re.search(r"number_of_executed_units:\s+(\d+)", log)
        covered = re.findall(r"cov: (\d+)", log)
        sys.stdout.write(
            f"fuzz {target}: {executed[1] if executed else '?'} inputs reached {covered[-1] if covered else '?'} "
            f"points of the code in {time.monotonic() - began:.0f} s\n"
        )
        found = [path.read_bytes() for path in folder.glob("found-*")]
        if keep:
            corpus.save(target, [*found, *(path.read_bytes() for path in (folder / "inputs").iterdir())])
        if not status and not found:
            return True
        sys.stdout.write("\n".join(line for line in log.splitlines() if not line.startswith("#"))[-4000:] + "\n")
        for data in found:
            sys.stdout.write(f"FAILED; replay: python -m tests.fuzz {target} --hex {data.hex()}\n")
        return False


def _be_the_fuzzer(target: str, folder: Path, seconds: int) -> NoReturn:
    """Fuzz in a forked child, and exit without the cleanup of its parent."""
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    atheris = importlib.import_module("atheris")
    targets = importlib.import_module("tests.fuzz.targets")
    options = {
        "max_total_time": seconds,
        "max_len": targets.MAX_BYTES,
        "timeout": SLOW_S,
        "rss_limit_mb": RSS_MIB,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder}/found-",
    }
    arguments = [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), f"{folder}/inputs"]
    code = 1
    try:
        atheris.Setup(arguments, targets.TARGETS[target])
        atheris.Fuzz()
    except SystemExit as exc:
        code = int(exc.code or 0)
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
