"""Which files are accepted: by owner, mode and content, every file that decides anything."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from brokers import Role
from goreprox.cli import main as cli
from goreprox.config.addresses import Address
from goreprox.errors import GoreproxError, StartError
from goreprox.http import auth
from goreprox.keys.authority import Watcher
from goreprox.keys.reach import Reach
from goreprox.keys.state import StateDir
from goreprox.net.certificates import Certificates
from goreprox.process import files
from goreprox.process.files import FileKind, read_file
from tests.support.events import Events, matching, message
from tests.support.tls import Authority

SECRET = FileKind("a secret", secret=True)
OPEN = FileKind("a rule")
HERE = [Address("h", 1)]


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make a file another user's; return whose."""
    if os.geteuid() == 0:
        os.chown(path, 65_534, -1)
        return 65_534
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    return owner


def of_root(path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> Path:
    """Make a file root's, while we are not root."""
    owner = path.stat().st_uid
    monkeypatch.setattr(files, "_ROOT", owner)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    path.chmod(mode)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_text("text")
    made.chmod(0o600)
    return made


# -- the rule


@pytest.mark.parametrize("kind", [SECRET, OPEN])
def test_a_file_of_another_user_is_rejected(path: Path, monkeypatch: pytest.MonkeyPatch, kind: FileKind) -> None:
    assert read_file(path, kind) == "text"
    owner = give_away(path, monkeypatch)
    with pytest.raises(StartError, match=f"{path}: belongs to user {owner}, who could change it; expected {kind.what}"):
        read_file(path, kind)


@pytest.mark.parametrize("kind", [SECRET, OPEN])
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_rejected(path: Path, kind: FileKind, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(StartError, match=f"{path}: others may write to it; chmod go-w {path}$"):
        read_file(path, kind)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o444])
def test_a_secret_of_ours_is_rejected_if_others_may_read_it(path: Path, mode: int) -> None:
    path.chmod(mode)
    assert read_file(path, OPEN) == "text"
    with pytest.raises(StartError, match=f"{path}: others may read it; chmod 600 {path}$"):
        read_file(path, SECRET)


def test_a_secret_of_root_may_be_readable_for_our_group_but_not_for_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_root(path, monkeypatch, 0o640)
    assert read_file(path, SECRET) == "text"
    path.chmod(0o644)
    assert read_file(path, OPEN) == "text"
    with pytest.raises(StartError, match=f"{path}: others may read it; chmod o= {path}$"):
        read_file(path, SECRET)


def test_secrets_of_container_engines_and_credentials_of_systemd_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_root(path, monkeypatch, 0o444)
    with pytest.raises(StartError):
        read_file(path, SECRET)
    with monkeypatch.context() as systemd:
        systemd.setenv("CREDENTIALS_DIRECTORY", str(path.parent))
        assert read_file(path, SECRET) == "text"
    path.parent.chmod(0o755)
    with monkeypatch.context() as docker:
        docker.setattr(files, "_DOCKER_SECRETS", path.parent)
        assert read_file(path, SECRET) == "text"
        docker.setattr(files, "_ROOT", -1)  # a directory of that name, but not root's
        with pytest.raises(StartError):
            read_file(path, SECRET)


def test_a_secret_in_a_volume_of_kubernetes_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_root(path, monkeypatch, 0o644)
    version = path.parent / "..2026_01_01"
    version.mkdir()
    path.rename(version / "file")
    (path.parent / "..data").symlink_to(version.name)
    path.symlink_to("..data/file")
    assert read_file(path, SECRET) == "text"
    path.chmod(0o646)
    with pytest.raises(StartError, match="others may write"):
        read_file(path, SECRET)


def test_no_chmod_is_advised_for_a_file_of_the_wrong_kind(path: Path) -> None:
    path.write_text("root:x:0:0:root:/root:/bin/bash\n")
    path.chmod(0o644)
    with pytest.raises(StartError) as caught:
        read_file(path, FileKind("the join string of a server", secret=True, sign="goreprox://"))
    assert str(caught.value) == f"{path}: not the join string of a server; name the right file"
    path.write_text("\n")
    with pytest.raises(StartError, match=f"{path}: empty, expected the join string of a server; name the right file$"):
        read_file(path, FileKind("the join string of a server", secret=True, sign="goreprox://"))


def test_a_pipe_is_read_only_where_one_is_allowed(path: Path) -> None:
    pipe = path.with_name("pipe")
    os.mkfifo(pipe, 0o600)
    with pytest.raises(StartError, match="not a regular file, expected a rule"):
        read_file(pipe, OPEN)  # would wait for ever


# -- who follows it


def read_join(tmp_path: Path) -> tuple[Path, Callable[[], object]]:
    path = StateDir(tmp_path / "state").add(Role.PROVIDER, "p", None, HERE)
    return path, lambda: cli.main(["provider", "1", "--join-file", str(path)])


def read_server_key(tmp_path: Path) -> tuple[Path, Callable[[], object]]:
    state = StateDir(tmp_path / "state")
    state.server_keys()
    return state.server_key, state.server_keys


def read_authorized(tmp_path: Path) -> tuple[Path, Callable[[], object]]:
    state = StateDir(tmp_path / "state")
    state.add(Role.PROVIDER, "p", None, HERE)
    return state.authorized / "p.toml", state.all


def read_reach(tmp_path: Path) -> tuple[Path, Callable[[], object]]:
    state = StateDir(tmp_path / "state")
    state.remember(Reach())
    return tmp_path / "state" / "reach.toml", state.reach


def read_tokens(tmp_path: Path) -> tuple[Path, Callable[[], object]]:
    path = tmp_path / "tokens"
    assert cli.main(["token", "new", "a", "--auth-tokens", str(path)]) == 0
    return path, lambda: auth.read(path)


def read_named_file(tmp_path: Path) -> tuple[Path, Callable[[], object]]:
    path = tmp_path / "mine.toml"
    path.write_text('name = "a"\n')
    path.chmod(0o600)
    return path, lambda: cli.main(["status", "--runtime-dir", str(tmp_path / "none"), "--config", str(path)])


def read_found_file(tmp_path: Path) -> tuple[Path, Callable[[], object]]:
    path = tmp_path / "goreprox.toml"
    path.write_text('name = "a"\n')
    path.chmod(0o600)
    return path, lambda: cli.main(["status", "--runtime-dir", str(tmp_path / "none")])


def read_state_dir_in_file(tmp_path: Path) -> tuple[Path, Callable[[], object]]:
    StateDir(tmp_path / "state").server_keys()
    path = tmp_path / "goreprox.toml"
    path.write_text('state-dir = "state"\n')
    path.chmod(0o600)
    return path, lambda: cli.main(["keys", "list"])


def read_tls(name: str) -> Callable[[Path], tuple[Path, Callable[[], object]]]:
    def read(tmp_path: Path) -> tuple[Path, Callable[[], object]]:
        made = Authority(tmp_path)
        made.ca_file.chmod(0o600)
        return tmp_path / name, lambda: Certificates([(made.cert, made.key)], made.ca_file)

    return read


READERS = [
    read_join,
    read_server_key,
    read_authorized,
    read_reach,
    read_tokens,
    read_named_file,
    read_found_file,
    read_state_dir_in_file,
    read_tls("cert.pem"),
    read_tls("key.pem"),
    read_tls("ca.pem"),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("how", ["owner", "mode"])
def test_every_file_that_decides_anything_is_checked_for_owner_and_mode(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reader: Callable[[Path], tuple[Path, Callable[[], object]]],
    how: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path, read = reader(tmp_path)
    capsys.readouterr()
    if how == "owner":
        give_away(path, monkeypatch)
    else:
        path.chmod(0o666)
    said = ""
    try:
        assert read() in (1, 2)
    except GoreproxError as exc:
        said = str(exc)
    said += capsys.readouterr().err
    assert path.name in said
    assert ("belongs to user " if how == "owner" else "others may write to it; chmod go-w ") in said


def test_a_running_server_ignores_a_key_file_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    state = StateDir(tmp_path / "state")
    state.add(Role.PROVIDER, "p", None, HERE)
    watcher = Watcher(state)
    key = state.key("p").public
    assert watcher.grant(key) is not None
    give_away(state.authorized / "p.toml", monkeypatch)
    assert watcher.look()
    assert watcher.grant(key) is None
    assert "p.toml" in message(matching(events, "key_file")[0])
