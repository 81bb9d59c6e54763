"""The file that a process leaves to the code that takes its place, and the check before."""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator

import pytest

from goreprox.errors import ControlError
from goreprox.process import handover
from goreprox.process.handover import VARIABLE, Inherited, inherited, preflight, write
from goreprox.protocol.errors import ExportError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has files in memory")
ITEMS: list[object] = [{"a": 1}, b"x" * 70_000, [None, True, "text"]]


@pytest.fixture
def state() -> Iterator[int]:
    descriptor = write(ITEMS)
    yield descriptor
    os.close(descriptor)


def test_a_state_is_read_as_it_was_written_and_as_often_as_it_is_asked_for(state: int) -> None:
    for _ in range(2):
        assert list(Inherited(state, trial=False).items()) == ITEMS


def test_a_state_is_sealed_and_closed_on_execve(state: int) -> None:
    seals = fcntl.fcntl(state, fcntl.F_GET_SEALS)
    assert seals == fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert not os.get_inheritable(state)
    with pytest.raises(PermissionError):
        os.write(state, b"x")


def file(data: bytes) -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC)
    os.write(descriptor, data)
    return descriptor


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data[:10], "the state is incomplete"),
        (lambda data: data[:-1], "the state is incomplete"),
        (lambda data: data[:22], "the state is incomplete"),
        (lambda data: b"anything" + data[8:], "a state of format 1, expected 1"),
        (lambda data: data[:8] + bytes([0, 0, 0, 9]) + data[12:], "a state of format 9, expected 1"),
    ],
)
def test_a_damaged_state_is_rejected(state: int, change: Callable[[bytes], bytes], error: str) -> None:
    damaged = file(change(os.pread(state, 1 << 20, 0)))
    try:
        with pytest.raises(ExportError, match=error):
            list(Inherited(damaged, trial=False).items())
    finally:
        os.close(damaged)


def test_the_variable_is_used_once(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"trial {state}")
    found = inherited()
    assert found is not None and found.trial and found.descriptor == state
    assert inherited() is None


async def test_a_preflight_returns_the_version(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from goreprox.process.handover import inherited; print(len(list(inherited().items())))"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", code])
    assert await preflight(state) == str(len(ITEMS))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise SystemExit('goreprox: listen: no')", "the new code cannot take over: listen: no; nothing has changed"),
        ("raise SystemExit(7)", "the new code cannot take over: exit code 7; nothing has changed"),
    ],
)
async def test_a_preflight_that_fails_says_why(
    state: int, code: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", code])
    with pytest.raises(ControlError) as caught:
        await preflight(state)
    assert str(caught.value) == error


async def test_a_preflight_does_not_wait_for_ever(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "PREFLIGHT_S", 0.01)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "import time; time.sleep(600)"])
    with pytest.raises(ControlError, match=r"does not start within 0\.01 s; nothing has changed"):
        await preflight(state)


async def test_an_interpreter_that_is_gone_is_named(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ControlError, match="/nowhere/python: No such file or directory; install it again"):
        await preflight(state)
