"""The state directory: its files, their modes, and what is rejected; and how changes are noticed."""

import asyncio
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from brokers import BindError, Grant, KeyPair, Role
from goreprox.config.addresses import Address
from goreprox.config.paths import default_state_dir
from goreprox.config.published import parse_grants
from goreprox.errors import ConfigError, StartError
from goreprox.keys.authority import Watcher
from goreprox.keys.join import FILE, Join
from goreprox.keys.state import ServerKeys, StateDir
from goreprox.process.files import MAX_BYTES, read_file, write_secret
from tests.support.waiting import eventually

HERE = (Address("tunnel.example.org", 9887),)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- files


def test_created_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = StateDir(tmp_path / "state")
        state.server_keys()
        state.add(Role.PROVIDER, "laptop", ["web"], HERE)
    finally:
        os.umask(before)
    for path in (state.directory, *state.directory.rglob("*")):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    assert not list(state.directory.rglob(".new-*"))


@pytest.mark.parametrize("what", ["", "authorized", "join"])
def test_a_directory_that_others_may_write_is_rejected_with_the_chmod_that_repairs_it(
    state: StateDir, what: str
) -> None:
    path = state.directory / what
    path.chmod(0o770)
    with pytest.raises(StartError, match=f"others may write to it; chmod 700 {path}$"):
        StateDir(state.directory)
    path.chmod(0o755)  # what systemd makes by default
    StateDir(state.directory)


def test_a_secret_that_others_may_read_is_rejected_with_the_chmod_that_repairs_it(state: StateDir) -> None:
    state.server_keys()
    state.server_key.chmod(0o640)
    with pytest.raises(StartError, match=f"others may read it; chmod 600 {state.server_key}$"):
        state.server_keys()
    state.server_key.chmod(0o400)
    state.server_keys()


def test_a_credential_of_systemd_is_read_whatever_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "join"
    path.write_text("goreprox://x")
    path.chmod(0o440)  # how an access control list for one user looks
    with pytest.raises(StartError):
        read_file(path, FILE)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_file(path, FILE) == "goreprox://x"


def test_a_secret_may_come_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o666)
    writer = threading.Thread(target=pipe.write_text, args=("goreprox://…".replace("…", "x"),))
    writer.start()
    assert read_file(pipe, FILE) == "goreprox://x"
    writer.join()


def test_a_file_that_is_no_join_string_is_rejected(tmp_path: Path) -> None:
    for content in (b"\xff\xfe", b"x" * (MAX_BYTES + 1), b"root:x:0:0"):
        (tmp_path / "file").write_bytes(content)
        (tmp_path / "file").chmod(0o600)
        with pytest.raises(StartError, match="the join string of a server"):
            read_file(tmp_path / "file", FILE)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_secret(path, "first")
    with pytest.raises(FileExistsError):
        write_secret(path, "second")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk"):
        write_secret(path, "third", replace=True)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def fail(_descriptor: int) -> None:
    raise OSError(5, "the disk is broken")


def test_an_error_names_the_directory_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"file/state: not a directory; name another with --state-dir"):
        StateDir(tmp_path / "file" / "state")


def test_the_default_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert default_state_dir() == Path("/home/u/.local/state/goreprox")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/u/s")
    assert default_state_dir() == Path("/home/u/s/goreprox")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/goreprox:/var/lib/other")
    assert default_state_dir() == Path("/var/lib/goreprox")


# -- keys


def test_a_server_keeps_its_keys(state: StateDir) -> None:
    keys = state.server_keys()
    assert StateDir(state.directory).server_keys() == keys
    assert keys.present != keys.following
    assert keys.present.secret.decode() not in repr(keys)


def test_damaged_server_keys_are_rejected_and_not_shown(state: StateDir) -> None:
    secret = state.server_keys().present.secret.decode()
    for text in (f'present = "{secret}"', f'present = "{secret}"\nnext = 3', f'present = {secret}"', ""):
        write_secret(state.server_key, text, replace=True)
        with pytest.raises(StartError, match="expected the secret keys `present` and `next`") as caught:
            state.server_keys()
        assert secret not in str(caught.value)


def test_a_key_that_was_added_is_listed_and_its_join_string_fits(state: StateDir) -> None:
    path = state.add(Role.PROVIDER, "laptop", ["web", "ssh"], HERE)
    join = Join.parse(path.read_text())
    (key,) = state.all()
    assert key == state.key("laptop")
    assert (key.role, key.name, key.services) == (Role.PROVIDER, "laptop", ("web", "ssh"))
    assert (join.role, join.name, join.addresses) == (Role.PROVIDER, "laptop", HERE)
    assert join.keys.public == key.public and join.server_keys == state.server_keys().public
    assert join.keys.secret.decode() not in state._authorized("laptop").read_text()


def test_a_name_has_one_key(state: StateDir) -> None:
    state.add(Role.PROVIDER, "laptop", None, HERE)
    before = state.join_file("laptop").read_text()
    with pytest.raises(ConfigError, match="key laptop: it exists; revoke it first"):
        state.add(Role.EDGE, "laptop", None, HERE)
    assert state.join_file("laptop").read_text() == before


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "ä", "x" * 65])
def test_a_malformed_name_creates_no_file(state: StateDir, name: str) -> None:
    for call in (lambda: state.add(Role.EDGE, name, None, HERE), lambda: state.revoke(name), lambda: state.key(name)):
        with pytest.raises(ConfigError, match="expected 1 to 64 of"):
            call()
    assert not list(state.directory.rglob("*.toml"))


def test_revoking_removes_the_key_and_its_join_string(state: StateDir) -> None:
    join = state.add(Role.EDGE, "front", None, HERE)
    state.revoke("front")
    assert not state.all() and not join.exists()
    for call in (state.revoke, state.key):
        with pytest.raises(ConfigError, match="key front: there is none"):
            call("front")


def test_a_rotation_makes_the_next_key_the_present_one_and_renews_join_strings(state: StateDir) -> None:
    handed_over = state.add(Role.PROVIDER, "away", None, HERE)
    old = Join.parse(handed_over.read_text())
    handed_over.unlink()
    kept = state.add(Role.PROVIDER, "here", None, HERE)
    before = state.server_keys()
    assert state.rotate() == [kept]
    after = state.server_keys()
    assert after.present == before.following and after.following not in (before.present, before.following)
    assert Join.parse(kept.read_text()).server_keys == after.public
    assert after.present.public in old.server_keys  # one rotation is survived without a new join string,
    state.rotate()
    assert state.server_keys().present.public not in old.server_keys  # two are not


def test_a_damaged_join_string_stops_a_rotation_before_anything_changes(state: StateDir) -> None:
    write_secret(state.add(Role.PROVIDER, "here", None, HERE), "goreprox://", replace=True)
    before = state.server_keys()
    with pytest.raises(ConfigError, match=r"here\.join: "):
        state.rotate()
    assert state.server_keys() == before


# -- the watcher


KEY = KeyPair.generate().public.decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "key = ",
        f'key = "{KEY}"\nrole = "provider"',
        f'key = "{KEY}"\nrole = "provider"\nname = "other"',
        f'key = "{KEY}"\nrole = "admin"\nname = "bad"',
        f'key = "{KEY[:-1]}"\nrole = "provider"\nname = "bad"',
        f'key = "{KEY[:-1]}ä"\nrole = "provider"\nname = "bad"',
        f'key = "{KEY}"\nrole = "provider"\nname = "bad"\nservices = "web"',
        f'key = "{KEY}"\nrole = "provider"\nname = "bad"\nservices = ["a b"]',
        f'key = "{KEY}"\nrole = "provider"\nname = "bad"\nservice = ["web"]',
        f'key = "{KEY}"\nrole = "provider"\nname = "bad"\npublish = "tcp://443"',
        f'key = "{KEY}"\nrole = "provider"\nname = "bad"\npublish = ["http://*"]',
        f'key = "{KEY}"\nrole = "edge"\nname = "bad"\npublish = ["tcp://443"]',
        "#" * (MAX_BYTES + 1),
        f'key = "{KEY}"\nrole = ["provider"]\nname = "bad"',
        "key = " + "[" * 30_000,
    ],
    ids=range(16),  # a key is another one in each worker
)
def test_a_malformed_key_file_authorises_nobody_and_leaves_other_keys_valid(
    state: StateDir, text: str, lines: list[str]
) -> None:
    state.add(Role.PROVIDER, "good", None, HERE)
    (state.authorized / "bad.toml").write_text(text)
    watcher = Watcher(state)
    assert watcher.grant(KEY.encode()) is None
    assert watcher.grant(state.key("good").public) == Grant(Role.PROVIDER, "good")
    assert any("bad.toml: " in line and "this key is not authorised" in line for line in lines)
    with pytest.raises(StartError, match=r"bad\.toml: .*; (repair or remove it|name the right file)"):
        state.all()


def test_which_services_a_provider_key_may_offer(state: StateDir) -> None:
    state.add(Role.PROVIDER, "some", ["web", "ssh"], HERE)
    state.add(Role.PROVIDER, "any", None, HERE)
    state.add(Role.PROVIDER, "none", [], HERE)
    watcher = Watcher(state)
    some, anything, nothing = (state.key(name).public for name in ("some", "any", "none"))
    assert watcher.objection(some, {"services": ["ssh"]}) is None
    objection = str(watcher.objection(some, {"services": ["ssh", "smtp"]}))
    assert "does not allow the service smtp; `goreprox keys set some --services" in objection
    assert watcher.objection(some, {"services": "web"}) == "its services are malformed"
    assert watcher.objection(some, {"services": [["web"], 3]}) is not None
    assert watcher.objection(anything, {"services": ["smtp"]}) is None
    assert watcher.objection(nothing, {}) is None
    assert "does not allow the service web; " in str(watcher.objection(nothing, {"services": ["web"]}))
    assert watcher.objection(KEY.encode(), {}) == "its key is not authorised"


def test_which_names_a_provider_key_may_publish(state: StateDir) -> None:
    grants = parse_grants(["http://*.laptop.example.com", "tls://*.home.example.com", "tcp://443", "tcp://20000-20009"])
    state.add(Role.PROVIDER, "laptop", ["web"], HERE, publish=grants)
    state.add(Role.PROVIDER, "other", None, HERE)
    state.add(Role.EDGE, "edge", None, HERE)
    watcher = Watcher(state)
    laptop, other, edge = (state.key(name).public for name in ("laptop", "other", "edge"))
    for allowed in (
        ["web", "http://app.laptop.example.com@laptop", "http://*.laptop.example.com@laptop"],
        ["tls://a.home.example.com@laptop", "tls://*.home.example.com@laptop"],
        ["tcp://443@laptop", "tcp://20009@laptop", "tcp://*/ssh@laptop"],
        [f"http://{number}.laptop.example.com@laptop" for number in range(64)],
    ):
        assert watcher.objection(laptop, {"services": allowed}) is None
    for refused in (
        "http://laptop.example.com@laptop",
        "http://example.com@laptop",
        "http://app.laptop.example.com.evil.org@laptop",
        "tls://app.laptop.example.com@laptop",
        "http://a.home.example.com@laptop",
        "tcp://80@laptop",
        "tcp://20010@laptop",
        "http://app.laptop.example.com@other",
    ):
        objection = str(watcher.objection(laptop, {"services": ["web", refused]}))
        assert (
            f"does not allow to publish {refused.rpartition('@')[0]}; `goreprox keys set laptop --publish" in objection
        )
    for malformed in ("http://*@laptop", "http://APP.laptop.example.com@laptop", "http://a.laptop.example.com.@laptop"):
        assert watcher.objection(laptop, {"services": [malformed]}) is not None
    many = [f"http://{number}.laptop.example.com@laptop" for number in range(10_000)]
    assert watcher.objection(laptop, {"services": many}) == "it publishes 10000 names, expected at most 64"
    assert "does not allow the service ssh" in str(watcher.objection(laptop, {"services": ["ssh", "tcp://443@laptop"]}))
    for key, name in ((other, "other"), (edge, "edge")):
        assert "does not allow to publish" in str(watcher.objection(key, {"services": [f"tcp://443@{name}"]}))


def test_what_others_are_told_of_a_key_that_publishes(state: StateDir) -> None:
    grants = parse_grants(["http://*.laptop.example.com", "tcp://443", "tcp://20000-20009"])
    state.add(Role.PROVIDER, "laptop", None, HERE, publish=grants)
    state.add(Role.EDGE, "edge", None, HERE)
    state.add(Role.EDGE, "friend", ["db"], HERE)
    watcher = Watcher(state)
    laptop, edge, friend = (state.key(name).public for name in ("laptop", "edge", "friend"))
    forged: dict[str, object] = {"granted": ["key", [[1, 65535]]]}
    publishing: dict[str, object] = {"services": ["web", "tcp://443@laptop"]}
    told = publishing | {"granted": [laptop, [[443, 443], [20000, 20009]]]}
    assert watcher.certified(laptop, publishing | forged) == told
    assert watcher.certified(laptop, told) == told
    assert watcher.certified(laptop, {**forged, "services": ["web"]}) == {"services": ["web"]}
    assert watcher.certified(edge, {**forged, "publishes": True}) == {"publishes": True, "granted": True}
    assert watcher.certified(edge, forged) == {}
    assert watcher.certified(friend, {"services": ["db"], "publishes": True, "granted": True}) == {
        "services": ["db"],
        "publishes": True,
    }
    assert watcher.certified(KEY.encode(), {**forged, "weight": 1}) == {"weight": 1}


def test_which_services_an_edge_key_may_open(state: StateDir) -> None:
    granted = "w" * 64
    state.add(Role.EDGE, "some", ["web", granted], HERE)
    state.add(Role.EDGE, "any", None, HERE)
    state.add(Role.EDGE, "none", [], HERE)
    watcher = Watcher(state)
    some, anything, nothing = (state.key(name).public for name in ("some", "any", "none"))
    allowed: list[tuple[bytes, list[str]]] = [(some, ["web"]), (some, ["web", granted]), (some, []), (nothing, [])]
    for key, services in allowed:
        assert watcher.objection(key, {"services": services}) is None
    for whatever in ({}, {"services": ["secret"]}, {"services": None}):
        assert watcher.objection(anything, whatever) is None
    for key in (some, nothing):
        assert "it names no services" in str(watcher.objection(key, {}))
    for malformed in (None, "web", b"web", 1, {"web": True}):
        assert watcher.objection(some, {"services": malformed}) == "its services are malformed"
    for more in ("secret", f"{granted}w", "WEB", "web ", b"web", 1, None, ["web"], {"web": "web"}):
        assert "does not allow the service" in str(watcher.objection(some, {"services": ["web", more]}))


async def test_the_watcher_notices_added_changed_and_revoked_keys_and_rotations(
    state: StateDir, lines: list[str]
) -> None:
    changes = 0
    keys: list[ServerKeys] = []

    def changed() -> None:
        nonlocal changes
        changes += 1

    async def rekeyed(new: ServerKeys) -> None:
        keys.append(new)

    watcher = Watcher(state)
    task = asyncio.create_task(watcher.watch(changed, rekeyed))
    state.add(Role.PROVIDER, "laptop", ["web"], HERE)
    key = state.key("laptop").public
    await eventually(lambda: changes == 1)
    assert watcher.grant(key) == Grant(Role.PROVIDER, "laptop")

    path = state._authorized("laptop")
    write_secret(path, path.read_text().replace('"web"', '"ssh"'), replace=True)
    await eventually(lambda: changes == 2)
    assert watcher.objection(key, {"services": ["web"]})

    state.rotate()
    await eventually(lambda: keys == [state.server_keys()])

    state.server_key.chmod(0o644)
    await eventually(lambda: any("others may read it" in line for line in lines))
    state.revoke("laptop")
    await eventually(lambda: changes == 3)
    assert watcher.grant(key) is None and len(keys) == 1
    task.cancel()


async def test_a_failed_switch_to_new_server_keys_is_retried_and_watching_continues(
    state: StateDir, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goreprox.keys.authority.LOOK_S", 0.01)
    tried: list[ServerKeys] = []
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    async def rekeyed(new: ServerKeys) -> None:
        tried.append(new)
        if len(tried) < 3:
            raise BindError(errno.EMFILE, "no descriptors")

    watcher = Watcher(state)
    task = asyncio.create_task(watcher.watch(changed, rekeyed))
    before = watcher.server_keys
    state.rotate()
    await eventually(lambda: watcher.server_keys != before)
    state.add(Role.PROVIDER, "laptop", None, HERE)
    await eventually(lambda: changes)
    assert tried == [state.server_keys()] * 3
    assert sum("cannot switch to the new server keys" in line for line in lines) == 1
    task.cancel()


@pytest.mark.parametrize("odd", ["directory", "loop"])
def test_an_unreadable_key_file_authorises_nobody_and_delays_no_revocation(
    state: StateDir, odd: str, lines: list[str]
) -> None:
    for name in ("laptop", "good"):
        state.add(Role.PROVIDER, name, None, HERE)
    keys = {name: state.key(name).public for name in ("laptop", "good")}
    watcher = Watcher(state)
    path = state.authorized / "odd.toml"
    if odd == "directory":
        path.mkdir()
    else:
        path.symlink_to(path)
    state.revoke("laptop")
    assert watcher.look() and watcher.grant(keys["laptop"]) is None
    assert not watcher.look()
    for one in (watcher, Watcher(state)):
        assert one.grant(keys["good"]) == Grant(Role.PROVIDER, "good")
    assert any("odd.toml: " in line and "this key is not authorised" in line for line in lines)


def test_a_missing_directory_authorises_nobody_and_an_unreadable_one_changes_nothing(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.add(Role.PROVIDER, "laptop", None, HERE)
    key = state.key("laptop").public
    watcher = Watcher(state)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda _path: fail(0))
        assert not watcher.look() and watcher.grant(key) is not None
    state._authorized("laptop").rename(state.directory / "laptop.toml")
    state.authorized.rmdir()
    assert watcher.look() and watcher.grant(key) is None
