"""What newcomers get wrong, and the one line that puts each of them right."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, get_args

import pytest
from loguru import logger

from brokers import Role
from goreprox.cli import main as cli
from goreprox.cli.app import COMMANDS, app, sources
from goreprox.keys.state import StateDir
from tests.support.commands import Started
from tests.support.configs import leaves

JOIN: Final = "goreprox://AXCSabcdefghijklmnopqrstuvwxyz0123456789@publicbox:9887"
SECRET: Final = "abcdefghijklmnopqrstuvwxyz"
PROVIDER: Final = ("--server", "h", "--insecure")

Files = Mapping[str, str]
Case = tuple[str, list[str], Files, Files, str]
"""Its name; arguments; files by name; variables; what the line says."""

CASES: Final[list[Case]] = [
    ("a URL as target", ["provider", "http://127.0.0.1:3000", *PROVIDER], {}, {}, "leave http:// out"),
    ("a URL as server", ["provider", "1", "--server", "https://h", "--insecure"], {}, {}, "leave https:// out"),
    ("a URL as broker", ["edge", "--broker", "http://h", "--insecure"], {}, {}, "leave http:// out"),
    ("a URL as the address of a key", ["keys", "add", "v", "--address", "http://h"], {}, {}, "leave http:// out"),
    ("a URL as the server's address", ["server", "--address", "https://h"], {}, {}, "leave https:// out"),
    (
        "no host as the server's address",
        ["server", "--address", "9887"],
        {},
        {},
        "expected the host that peers connect",
    ),
    ("two targets without names", ["provider", "3000", "22", *PROVIDER], {}, {}, "like web=3000 ssh=22"),
    (
        "ports as Docker and ssh write them",
        ["provider", "8080:3000", *PROVIDER],
        {},
        {},
        "8080 is a number and no host",
    ),
    (
        "somebody else's file as join file",
        ["provider", "1", "--join-file", "passwd"],
        {"passwd": "root:x:0:0"},
        {},
        "passwd: not the join string of a server; name the right file",
    ),
    ("a join string as join file", ["provider", "1", "--join-file", JOIN], {}, {}, "give it by --join"),
    ("the same as variable", ["provider", "1"], {}, {"GOREPROX_JOIN_FILE": JOIN}, "give it by --join"),
    ("a join string as target", ["provider", JOIN, *PROVIDER], {}, {}, "leave goreprox:// out"),
    ("a join string as name", ["provider", "1", "--name", JOIN, *PROVIDER], {}, {}, "expected 1 to 64"),
    ("a join string as token", ["token", "new", JOIN, "--auth-tokens", "t"], {}, {}, "expected 1 to 64"),
    ("a join string too many", ["server", JOIN], {}, {}, "unexpected argument 'goreprox://…@publicbox:9887'"),
    ("NAME=PORT to listen on", ["server", "--listen", "web=8080"], {}, {}, "the port comes first: 8080=web"),
    ("the same after a scheme", ["server", "--listen", "http://web=80"], {}, {}, "the port comes first: 80=web"),
    ("PORT=NAME as target", ["provider", "3000=web", *PROVIDER], {}, {}, "the service comes first: web=3000"),
    (
        "a target without =",
        ["provider", "web3000", *PROVIDER],
        {},
        {},
        "each after SERVICE= if it is not of the default",
    ),
    ("blanks around =", ["provider", "web", "=", "3000", *PROVIDER], {}, {}, "each after SERVICE= if it is not"),
    ("nothing after =", ["provider", "web=", "3000", *PROVIDER], {}, {}, "write SERVICE=PORT without blanks"),
    ("a file as state directory", ["keys", "add", "a", "--state-dir", "f"], {"f": ""}, {}, "f: not a directory; name"),
    ("below a file", ["keys", "add", "a", "--state-dir", "f/g"], {"f": ""}, {}, "f/g: not a directory; name another"),
    ("no file of tokens", ["token", "list"], {}, {}, "--auth-tokens is missing; add --auth-tokens FILE"),
    ("a port as argument", ["server", "8080"], {}, {}, "unexpected argument '8080'; did you mean --listen 8080?"),
    ("the same with a service", ["edge", "8080=web"], {}, {}, "did you mean --listen 8080=web?"),
    (
        "services with blanks",
        ["keys", "add", "u", "--services", "web", "ssh"],
        {},
        {},
        "argument 'ssh'; separate services",
    ),
    ("an argument too many", ["keys", "revoke", "u", "v"], {}, {}, "argument 'v'; see `goreprox keys revoke --help`"),
    ("no such process", ["status", "--name", "nope", "--runtime-dir", "."], {}, {}, "no process named nope runs in"),
    ("no such role", ["status", "--role", "edge", "--runtime-dir", "."], {}, {}, "no edge runs in"),
    (
        "a key in capitals",
        ["server"],
        {"goreprox.toml": "LISTEN = 1"},
        {},
        "LISTEN is not an option; did you mean listen?",
    ),
    (
        "a table of nothing",
        ["server"],
        {"goreprox.toml": "[keys]\na = 1"},
        {},
        "keys is not an option; `goreprox COMMAND",
    ),
    ("a key far from all", ["server"], {"goreprox.toml": "zzzz = 1"}, {}, "zzzz is not an option; `goreprox COMMAND"),
    (
        "config in the file",
        ["server"],
        {"goreprox.toml": "config = 'x'"},
        {},
        "config is not an option; `goreprox COMMAND",
    ),
    (
        "routes as a table",
        ["server"],
        {"goreprox.toml": 'route = { "a.example" = "web" }'},
        {},
        'goreprox.toml: route is a table; expected a list, like route = ["…", "…"]',
    ),
    (
        "targets as a table",
        ["provider"],
        {"goreprox.toml": 'target = { web = "3" }'},
        {},
        "target is a table; expected a",
    ),
    (
        "a table for a number",
        ["server"],
        {"goreprox.toml": "grace = { s = 1 }"},
        {},
        "grace is a table; expected one value",
    ),
    ("a list for a number", ["server"], {"goreprox.toml": "grace = [1, 2]"}, {}, "grace '[1, 2]': expected one value"),
    (
        "a time in the file",
        ["server"],
        {"goreprox.toml": 'grace = "1 hour"'},
        {},
        "file goreprox.toml: grace '1 hour': expected seconds, or a time like",
    ),
    ("a time as variable", ["server"], {}, {"GOREPROX_GRACE": "x"}, "variable GOREPROX_GRACE 'x': expected seconds"),
    ("a size", ["server", "--memory", "lots"], {}, {}, "--memory 'lots': expected MiB, or a size like 256MiB"),
    ("a size too small", ["server", "--insecure", "--memory", "1.5"], {}, {}, "memory 1.5 MiB: "),
    ("half a connection", ["server", "--max-connections", "1.5"], {}, {}, "--max-connections '1.5': expected a whole"),
    (
        "the same as variable",
        ["server"],
        {},
        {"GOREPROX_MAX_PEERS": "1.5"},
        "GOREPROX_MAX_PEERS '1.5': expected a whole",
    ),
    ("the same in the file", ["demo"], {"goreprox.toml": "cuts = 1.5"}, {}, "cuts '1.5': expected a whole number"),
    ("a switch", ["server"], {}, {"GOREPROX_INSECURE": "maybe"}, "GOREPROX_INSECURE 'maybe': expected true or false"),
    ("a level", ["server", "--log-level", "loud"], {}, {}, "--log-level 'loud': expected one of trace, debug, info"),
    ("an option twice", ["server", "--grace", "1", "--grace", "2"], {}, {}, "--grace: given twice; once is enough"),
    ("a missing name", ["keys", "add"], {}, {}, "goreprox keys add: NAME is missing"),
    ("names that are paths", ["keys", "add", ".."], {}, {}, "neither a dot nor a dash at the beginning"),
    ("a hidden name", ["keys", "add", ".hidden"], {}, {}, "neither a dot nor a dash at the beginning"),
    ("a name like an option", ["keys", "add", "--", "-x"], {}, {}, "neither a dot nor a dash at the beginning"),
    ("a hidden service", ["keys", "add", "x", "--services", ".a"], {}, {}, "neither a dot nor a dash at the beginning"),
    (
        "an expiry in words",
        ["token", "new", "a", "--auth-tokens", "t", "--expires", "soon"],
        {},
        {},
        "time from now like 30d",
    ),
    (
        "an expiry in the past",
        ["token", "new", "a", "--auth-tokens", "t", "--expires", "2020-01-01"],
        {},
        {},
        "in the past",
    ),
    ("a hidden process", ["server", "--insecure", "--name", "."], {}, {}, "neither a dot nor a dash at the beginning"),
]


@pytest.mark.parametrize(
    ("arguments", "files", "variables", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_mistake_is_reported_in_one_line_that_says_what_to_do(  # noqa: PLR0917 -- fixtures, and a row of the table
    started: Started,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    files: Files,
    variables: Files,
    message: str,
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("goreprox: ") and error.count("\n") == 1
    assert SECRET not in error
    assert "chmod" not in error
    assert started.config is None


def test_a_join_string_may_have_line_breaks_anywhere(started: Started, tmp_path: Path) -> None:
    text = StateDir(tmp_path / "state").add(Role.PROVIDER, "laptop", None).read_text().strip()
    for place in range(1, len(text), 7):
        started.config = None
        assert cli.main(["provider", "1", "--join", f" {text[:place]}\n  {text[place:]}\n"]) == 0
        assert started.config.process.name == "laptop"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_as_such(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        assert cli.main(["keys", "add", "a"]) == 1
    error = capsys.readouterr().err
    assert f"state: {os.strerror(code)}; free some space, or name another with --state-dir" in error
    assert "None" not in error and "writable" not in error


def test_unknown_variables_are_logged_and_empty_ones_are_unset(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["broker"]) == 0
    without = started.config
    for key in {key for command in COMMANDS for key in sources.keys(command)} | {"config"}:
        monkeypatch.setenv(f"GOREPROX_{key.upper().replace('-', '_')}", "")
    capsys.readouterr()
    assert cli.main(["broker"]) == 0
    logger.remove()  # as the end of the process does: all is written
    assert started.config == without
    assert not capsys.readouterr().err
    monkeypatch.setenv("GOREPROX_LISTENN", "8080")
    monkeypatch.setenv("GOREPROX_UNHEARD_OF", "1")
    monkeypatch.setenv("GOREPROX_LISTEN", "8080")
    assert cli.main(["broker"]) == 0
    logger.remove()
    lines = capsys.readouterr().err.splitlines()
    assert [
        line
        for line in lines
        if "GOREPROX_LISTENN is not an option" in line and "did you mean GOREPROX_LISTEN?" in line
    ]
    assert [
        line for line in lines if "GOREPROX_UNHEARD_OF is not an option and is ignored" in line and "mean" not in line
    ]
    assert len(lines) == 2


def test_an_empty_variable_does_not_put_keys_into_the_working_directory(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOREPROX_STATE_DIR", "")
    assert cli.main(["keys", "add", "a"]) == 0
    assert cli.main(["server"]) == 0
    assert started.config.state_dir == tmp_path / "state"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_no_numeric_option_is_rounded() -> None:
    apps = [app[command] for command in COMMANDS]
    apps += [app[group][command] for group in ("keys", "token") for command in app[group] if command[0] != "-"]
    for each in apps:
        for argument in each.assemble_argument_collection():
            kinds = {argument.hint, *get_args(argument.hint)}
            assert not kinds & {int, float} or argument.parameter.converter is not None, argument.name


@pytest.mark.parametrize("way", ["flag", "variable", "key"])
@pytest.mark.parametrize(
    ("option", "text", "field", "value"),
    [
        ("grace", "1m", "grace_s", 60),
        ("grace", "60s", "grace_s", 60),
        ("grace", "1h30m", "grace_s", 5400),
        ("grace", "0.5", "grace_s", 0.5),
        ("drain", "1500ms", "drain_s", 1.5),
        ("link-timeout", "1m5s", "link_timeout_s", 65),
        ("half-closed-timeout", "1d", "half_closed_timeout_s", 86_400),
        ("queue-timeout", "2m", "queue_timeout_s", 120),
        ("memory", "100", "memory_bytes", 100 << 20),
        ("memory", "100.5", "memory_bytes", 201 << 19),
        ("memory", "256MiB", "memory_bytes", 256 << 20),
        ("memory", "1.5GiB", "memory_bytes", 3 << 29),
        ("memory", "512m", "memory_bytes", 512 << 20),
        ("memory", "100MB", "memory_bytes", 100_000_000),
        ("max-connections", "4096", "max_connections", 4096),
    ],
)
def test_times_and_sizes_may_have_units_wherever_they_are_given(  # noqa: PLR0917 -- fixtures, and a row of the table
    started: Started,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    option: str,
    text: str,
    field: str,
    value: float,
) -> None:
    arguments = ["server", "--insecure"]
    match way:
        case "flag":
            arguments += [f"--{option}", text]
        case "variable":
            monkeypatch.setenv(f"GOREPROX_{option.upper().replace('-', '_')}", text)
        case _:
            (tmp_path / "goreprox.toml").write_text(f'{option} = "{text}"')
    assert cli.main(arguments) == 0
    assert {path.rpartition(".")[2]: each for path, each in leaves(started.config)}[field] == value
