"""Root manages the keys of a server that runs as another user, as under systemd's DynamicUser."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from brokers import Role
from goreprox.config.paths import default_runtime_dir, runtime_dirs
from goreprox.errors import ControlError
from goreprox.keys.state import StateDir
from goreprox.status.query import ask_all

NOBODY = 65534
ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def goreprox(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "goreprox", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A state directory of nobody's in a directory that only root may enter, like /var/lib/private."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    state = StateDir(private / "goreprox")
    state.add(Role.PROVIDER, "default", None)
    for path in (state.directory, *state.directory.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    link = tmp_path / "goreprox"
    link.symlink_to(state.directory)
    return link


@as_root
def test_root_reads_and_adds_as_the_owner_of_the_directory(theirs: Path) -> None:
    given = ("--state-dir", str(theirs))
    assert "default" in goreprox("keys", "list", *given).stdout
    added = goreprox("keys", "add", "laptop", "--address", "h", *given)
    assert added.returncode == 0, added.stderr
    assert added.stdout == (theirs / "join/laptop.join").read_text()
    for arguments in (
        ("add", "edge", "--role", "edge", "--address", "h", "--json"),
        ("set", "laptop", "--services", "web"),
        ("rotate",),
        ("revoke", "default"),
    ):
        done = goreprox("keys", *arguments, *given)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (theirs / "join").iterdir()} == {"laptop.join", "edge.join"}
    for path in (theirs.resolve(), *theirs.resolve().rglob("*")):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY), path
        assert stat.S_IMODE(status.st_mode) == (0o700 if path.is_dir() else 0o600)
    assert f'"join_file": "{theirs}/join/laptop.join"' in goreprox("keys", "list", "--json", *given).stdout


@as_root
def test_root_follows_no_link_that_the_owner_could_not_follow(theirs: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (theirs / "join/default.join").unlink()
    (theirs / "join").rmdir()
    (theirs / "join").symlink_to(elsewhere)
    done = goreprox("keys", "add", "laptop", "--address", "h", "--state-dir", str(theirs))
    assert done.returncode == 1
    assert not list(elsewhere.iterdir())


@as_root
def test_other_users_are_told_to_run_the_command_as_root(theirs: Path) -> None:
    with tempfile.TemporaryDirectory() as everybodys:
        Path(everybodys).chmod(0o755)
        link = Path(everybodys) / "goreprox"
        link.symlink_to(theirs.resolve())
        code = (  # who we become may not be able to read our modules
            "import os, sys, goreprox.cli.main as cli, goreprox.cli.keys, goreprox.keys.guard, goreprox.process.log;"
            "os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]));"
            "sys.exit(cli.main(['keys', 'list', '--state-dir', sys.argv[2]]))"
        )
        command = [sys.executable, "-c", code, str(NOBODY), str(link)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == f"goreprox: state-dir {link}: it is another user's; run this as root or as its owner\n"


@as_root
def test_root_finds_the_keys_of_the_systemd_unit(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import sys; from pathlib import Path; import goreprox.cli.keys as keys, goreprox.cli.main as cli;"
        "keys.OF_UNIT = Path(sys.argv[1]); sys.exit(cli.main(sys.argv[2:]))"
    )

    def listed() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, str(theirs), "keys", "list"],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "own")},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "default" in listed()
    goreprox("keys", "add", "mine", XDG_STATE_HOME=str(tmp_path / "own"))
    assert "mine" in listed() and "default" not in listed()


def test_status_also_asks_processes_of_systemd_units(tmp_path: Path) -> None:
    for name in ("goreprox-server", "goreprox-provider", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "goreprox.pid").write_text("")
    assert runtime_dirs(tmp_path) == [
        default_runtime_dir(),
        tmp_path / "goreprox-provider",
        tmp_path / "goreprox-server",
    ]


def test_status_names_directories_of_other_users_if_no_process_responds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def iterdir(self: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(ControlError, match=r"goreprox-server: it is another user's; run this as root or as its owner"):
        ask_all([tmp_path / "goreprox-server"])
