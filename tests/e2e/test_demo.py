"""`goreprox demo` as a user runs it, with its output in a pipe."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "goreprox", "demo", *arguments]


@pytest.mark.parametrize("encoding", ["utf-8", pytest.param("latin-1", marks=pytest.mark.long)])
def test_a_download_survives_cuts_and_the_demo_reports_it(encoding: str) -> None:
    shown = subprocess.run(
        command("--size", "32", "--cuts", "2"),
        cwd=ROOT,
        env={**os.environ, "GOREPROX_JOIN": "of another server", "PYTHONIOENCODING": encoding, "COLUMNS": "40"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    *_, first, second, last = shown.stdout.splitlines()
    assert first.endswith("of 32 MiB: the link is cut for 1 s") and second.endswith(
        "of 32 MiB: the link is cut for 1 s"
    )
    assert last.startswith("survived: 32 MiB over one connection, link cut 2 times, longest stall ")
    assert "; SHA-256 equal (" in last
    assert "\x1b" not in shown.stdout and shown.stdout.isascii()


@pytest.mark.parametrize("encoding", ["utf-8", pytest.param("latin-1", marks=pytest.mark.long)])
def test_a_progress_bar_is_shown_on_terminals_of_any_encoding(encoding: str) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "TERM": "xterm"}
    arguments = command("--size", "8", "--cuts", "1")
    with subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := os.read(ours, 65536):
                shown += data
        os.close(ours)
    assert process.returncode == 0, shown
    text = shown.decode(encoding)
    assert "download" in text and "survived: 8 MiB" in text
    assert ("✂" in text) is (encoding == "utf-8")


def test_ctrl_c_ends_a_demo_that_keeps_running_and_leaves_no_process() -> None:
    arguments = command("--size", "1", "--cuts", "0", "--keep")
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            started = next(lines)
            assert any(line.startswith("left running: http://127.0.0.1:") for line in lines)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=DEADLINE_S) == 0
        finally:
            process.kill()
    pids = [int(word.split(")")[0]) for word in started.split("(pid ")[1:]]
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def test_a_process_that_cannot_start_is_named_in_one_line_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "zmq.py").write_text('raise ImportError("it is broken")')
    failed = subprocess.run(
        command(),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stderr == "goreprox: the demo cannot start its server: ImportError: it is broken\n"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
