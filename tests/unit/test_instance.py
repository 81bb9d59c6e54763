"""Locked files as proof of death, with real processes that are really killed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from goreprox.config.paths import default_runtime_dir
from goreprox.errors import StartError
from goreprox.process.files import prepare_directory
from goreprox.process.instance import Instance

A, B, C = (bytes([n]) * 16 for n in range(1, 4))
HOLDER = """
import sys
from pathlib import Path
from goreprox.process.instance import Instance
held = Instance.acquire(Path(sys.argv[1]), "provider", "n", bytes.fromhex(sys.argv[2]))
print(held.path.name, flush=True)
sys.stdin.read()
held.release()
"""


@contextmanager
def holder(directory: Path, incarnation: bytes) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds a slot until its standard input ends."""
    command = [sys.executable, "-c", HOLDER, str(directory), incarnation.hex()]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("provider-n.")
            yield process
        finally:
            process.kill()


def acquire(directory: Path, incarnation: bytes, name: str = "n") -> Instance:
    return Instance.acquire(directory, "provider", name, incarnation)


def test_the_first_process_has_no_predecessor(tmp_path: Path) -> None:
    instance = acquire(tmp_path / "new", A)
    assert instance.predecessor is None
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert instance.path.stat().st_mode & 0o777 == 0o600
    instance.release()


def test_a_killed_process_is_the_predecessor_of_the_next(tmp_path: Path) -> None:
    with holder(tmp_path, A) as process:
        process.kill()
        process.wait()
        instance = acquire(tmp_path, B)
        assert instance.predecessor == A
        instance.release()


def test_a_process_that_ended_cleanly_is_a_predecessor_too(tmp_path: Path) -> None:
    with holder(tmp_path, A) as process:
        process.communicate()
        assert process.returncode == 0
        instance = acquire(tmp_path, B)
        assert instance.predecessor == A
        instance.release()


def test_replicas_have_slots_of_their_own_and_do_not_count_as_dead(tmp_path: Path) -> None:
    with holder(tmp_path, A) as first, holder(tmp_path, B):
        third = acquire(tmp_path, C)
        assert (third.path.name, third.predecessor) == ("provider-n.2", None)
        first.kill()
        first.wait()
        successor = acquire(tmp_path, C)
        assert (successor.path.name, successor.predecessor) == ("provider-n.0", A)
        third.release()
        successor.release()


def test_other_names_and_roles_have_other_locks(tmp_path: Path) -> None:
    with holder(tmp_path, A) as process:
        process.kill()
        process.wait()
        instances = [acquire(tmp_path, B, name="m"), Instance.acquire(tmp_path, "server", "n", B)]
        assert [instance.predecessor for instance in instances] == [None, None]
        for instance in instances:
            instance.release()


@pytest.mark.parametrize("content", [b"x", b"\xff" * 33, A.hex().encode(), A.hex().encode() + b"\nmore", b"z" * 9999])
def test_a_file_with_garbage_has_no_predecessor_and_is_overwritten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "provider-n.0").write_bytes(content)
    instance = acquire(tmp_path, B)
    assert instance.predecessor is None
    assert instance.path.read_bytes() == B.hex().encode() + b"\n"
    instance.release()
    instance.release()


def test_a_lock_file_may_be_removed(tmp_path: Path) -> None:
    first = acquire(tmp_path, A)
    first.path.unlink()
    second = acquire(tmp_path, B)
    assert second.predecessor is None
    first.release()
    assert second.path.read_bytes() == B.hex().encode() + b"\n"
    second.release()


def test_a_directory_that_others_can_write_to_is_rejected(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StartError, match="others may write to it; chmod 700"):
        acquire(tmp_path, A)


def test_a_symbolic_link_or_a_file_in_place_of_the_directory_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StartError, match="not a directory"):
        acquire(tmp_path / "link", A)
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="--runtime-dir"):
        acquire(tmp_path / "file", A)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make links of root's")
def test_a_symbolic_link_of_root_to_the_directory_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = 65534
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.chown(tmp_path / "real", nobody, nobody)
    monkeypatch.setattr("os.geteuid", lambda: nobody)
    prepare_directory(tmp_path / "link", "--runtime-dir", follow=False)
    os.chown(tmp_path / "link", nobody, nobody, follow_symlinks=False)
    with pytest.raises(StartError, match="not a directory"):
        prepare_directory(tmp_path / "link", "--runtime-dir", follow=False)


def test_a_symbolic_link_in_place_of_the_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "provider-n.0").symlink_to(tmp_path / "precious")
    with pytest.raises(StartError, match="--runtime-dir"):
        acquire(tmp_path, A)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_directory_of_another_user_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    with pytest.raises(StartError, match=f"belongs to user {owner}"):
        acquire(tmp_path, A)


def test_the_default_directory_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_runtime_dir() == tmp_path / "goreprox"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert default_runtime_dir().is_absolute()
