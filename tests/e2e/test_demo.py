"""`goreprox demo` as a user runs it, with its output in a pipe."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "goreprox", "demo", *arguments]


def test_a_cut_download_survives_and_says_so() -> None:
    shown = subprocess.run(
        command("--size", "32", "--cuts", "2"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    words = " ".join(shown.stdout.split())
    assert words.count("the link is cut") == 2
    assert "survived: 32 MiB over one connection, 2 cuts" in words
    assert "SHA-256 equal" in words
    assert "\x1b" not in shown.stdout
