"""`goreprox demo` as a user runs it, with its output in a pipe."""

import os
import signal
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
        env={**os.environ, "GOREPROX_JOIN": "what the user has set is for other servers"},
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


def test_kept_running_it_ends_with_ctrl_c_and_leaves_no_process_behind() -> None:
    arguments = command("--size", "1", "--cuts", "0", "--keep")
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            started = next(lines)
            assert any(line.startswith("left running: http://127.0.0.1:") for line in lines)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
    pids = [int(word.split(")")[0]) for word in started.split("(pid ")[1:]]
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
