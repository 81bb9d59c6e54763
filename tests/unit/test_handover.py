"""The file that a process leaves to the code that takes its place, and the check before."""

import fcntl
import gc
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cbor2
import pytest

from goreprox.errors import ControlError
from goreprox.process import handover
from goreprox.process.handover import VARIABLE, Inherited, inherited, moved, preflight, write
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
    try:
        found = inherited()
        assert found is not None and found.trial and found.descriptor == state
        assert inherited() is None
    finally:
        gc.enable()


def test_garbage_is_not_collected_until_the_state_is_restored(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"real {os.dup(state)}")
    try:
        found = inherited()
        assert found is not None and not gc.isenabled()
        found.close()
        assert gc.isenabled()
    finally:
        gc.enable()


async def test_a_preflight_returns_the_version(state: int) -> None:
    code = "from goreprox.process.handover import inherited; print(len(list(inherited().items())))"
    assert await preflight(state, ["python", "-c", code]) == str(len(ITEMS))


async def test_a_preflight_has_the_state_and_no_other_descriptor(state: int) -> None:
    code = """if True:
        import os
        def is_open(descriptor):
            try:
                os.fstat(descriptor)
            except OSError:
                return False
            return True
        print(*filter(is_open, range(3, 256)))
    """
    with socket.socket() as sock:
        sock.set_inheritable(True)
        assert await preflight(state, ["python", "-c", code]) == str(state)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise SystemExit('goreprox: listen: no')", "the new code cannot take over: listen: no; nothing has changed"),
        ("raise SystemExit(7)", "the new code cannot take over: exit code 7; nothing has changed"),
    ],
)
async def test_a_preflight_that_fails_says_why(state: int, code: str, error: str) -> None:
    with pytest.raises(ControlError) as caught:
        await preflight(state, ["python", "-c", code])
    assert str(caught.value) == error


async def test_a_preflight_does_not_wait_for_ever(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "PREFLIGHT_S", 0.01)
    with pytest.raises(ControlError, match=r"does not start within 0\.01 s; nothing has changed"):
        await preflight(state, ["python", "-c", "import time; time.sleep(600)"])


async def test_an_interpreter_that_is_gone_is_named(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ControlError, match="/nowhere/python: No such file or directory; install it again"):
        await preflight(state, ["python"])


class Refusing:
    """Refuses memory at the step `at` of those that it is asked to count."""

    def __init__(self, at: int) -> None:
        self._left = at

    def step(self) -> None:
        self._left -= 1
        if not self._left:
            raise MemoryError

    def calling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, each call of which is a step."""

        def counted(*args: Any) -> Any:
            self.step()
            return function(*args)

        return counted


def queues() -> tuple[deque[bytes | memoryview], ...]:
    return deque([b"a", memoryview(b"b" * 70_000)]), deque(), deque([b"c" * 300, b"d"]), deque([b"e"])


def with_queues(chunks: tuple[deque[bytes | memoryview], ...]) -> list[object]:
    return [{"a": 1}, *chunks[:2], {"b": 2}, *chunks[2:]]


def test_queues_are_emptied_into_the_file_and_read_back_as_chunks() -> None:
    chunks = queues()
    state = write(with_queues(chunks))
    try:
        assert not any(chunks)
        assert list(Inherited(state, trial=False).items()) == list(moved(with_queues(queues())))
    finally:
        os.close(state)


def test_what_cannot_be_written_is_gone_on_with_as_it_is() -> None:
    chunks = queues()
    kept = Inherited(-1, trial=False, kept=lambda: iter(with_queues(chunks)))
    assert list(kept.items()) == list(moved(with_queues(queues())))
    assert not any(chunks)
    kept.close()
    assert kept.restored


def write_refused(refusing: Refusing, items: Iterable[object], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Write items; return why that failed, if it did."""

    def stepwise() -> Iterator[object]:
        for item in items:
            refusing.step()
            yield item

    with monkeypatch.context() as patch:
        for module, name in ((os, "memfd_create"), (os, "writev"), (os, "pwrite"), (fcntl, "fcntl"), (cbor2, "dumps")):
            patch.setattr(module, name, refusing.calling(getattr(module, name)))
        try:
            os.close(write(stepwise()))
        except ControlError as exc:
            return str(exc)
    return None


def test_memory_that_is_refused_at_any_step_of_writing_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    refused = 0
    while True:
        refusing, chunks = Refusing(refused + 1), queues()
        problem = write_refused(refusing, with_queues(chunks), monkeypatch)
        if problem is None:
            break
        refused += 1
        assert problem == "no memory for the state: Cannot allocate memory"
        assert [list(map(bytes, queue)) for queue in chunks] == [list(map(bytes, queue)) for queue in queues()]
    assert refused == 1 + 1 + 6 + 2 * 2 + 5 + 1 + 1, "file, head, items, maps made and written, chunks, head, seals"
    assert not any(chunks)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_takes_only_a_part_of_a_chunk_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    writev = os.writev

    def short(descriptor: int, parts: Sequence[bytes | memoryview]) -> int:
        most = 40_000
        return writev(descriptor, [part[:most] for part in parts])

    monkeypatch.setattr(os, "writev", short)
    chunks = queues()
    with pytest.raises(ControlError, match="no memory for the state: Cannot allocate memory"):
        write(with_queues(chunks))
    assert [list(map(bytes, queue)) for queue in chunks] == [list(map(bytes, queue)) for queue in queues()]
