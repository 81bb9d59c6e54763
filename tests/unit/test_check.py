"""`goreprox check` finds what a start would find wrong, names the source of each option, and starts nothing."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from goreprox.cli import main as cli
from goreprox.cli.app import sources
from goreprox.keys.join import Join
from goreprox.keys.state import StateDir
from tests.support.commands import Started
from tests.support.sockets import HOST, closed_port


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    """Return the exit code, the lines on standard output, and standard error."""
    code = cli.main(["check", *arguments])
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), printed.err


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    """Return the options by their names."""
    code, lines, _ = checked(capsys, *arguments, "--show", "--json")
    assert code == 0
    return {each["option"]: each for each in json.loads(lines[0])["options"]}


def test_every_mistake_of_a_file_is_one_line_with_the_file_and_the_key(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "goreprox.toml").write_text("grase = 3\n[server]\nmemory = { a = 1 }\n[provider]\nx = 1")
    code, lines, error = checked(capsys)
    assert code == 1
    assert lines == [
        "file goreprox.toml: grase is not an option; did you mean grace?",
        "file goreprox.toml: [server] memory is a table; expected one value",
        "file goreprox.toml: [provider] x is not an option; `goreprox COMMAND --help` shows what there is",
    ]
    assert error == "goreprox: 3 problems found; nothing would be started\n"


def test_every_malformed_value_is_found_for_each_role_that_the_file_has(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.toml").write_text(
        'grace = "60q"\n[server]\nlisten = ["80x"]\nmemory = "a"\n[provider]\ntarget = "3000=web"'
    )
    code, lines, _ = checked(capsys, "--config", "a.toml")
    assert code == 1
    assert sorted(line.partition(";")[0] for line in lines) == [
        "file a.toml: grace '60q': expected seconds, or a time like 500ms, 60s, 5m or 1h30m",
        "file a.toml: listen: address '80x': the port is missing",
        "file a.toml: memory 'a': expected MiB, or a size like 256MiB or 1.5GiB",
        "file a.toml: target '3000=web': the service comes first: web=3000 (in --listen the port does)",
    ]


def test_values_that_do_not_fit_together_are_found_where_they_were_given(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOREPROX_MEMORY", "1")
    advice = "10,000 connections need at least 79 MiB; raise --memory or lower --max-connections"
    assert checked(capsys, "server")[:2] == (1, [f"variable GOREPROX_MEMORY: memory 1 MiB: {advice}"])
    monkeypatch.delenv("GOREPROX_MEMORY")
    (tmp_path / "goreprox.toml").write_text("[server]\nmemory = 1")
    assert checked(capsys)[:2] == (1, [f"file goreprox.toml: memory 1 MiB: {advice}"])


def test_files_are_read_as_a_start_would_read_them(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("server", "--listen", "https://8443", "--tls-cert", "no.pem", "--tls-key", "no.pem", "--insecure")
    code, lines, _ = checked(capsys, *arguments, "--auth-tokens", "no.toml")
    assert code == 1
    assert [line.partition(";")[0] for line in lines] == [
        "flag --tls-cert: tls-cert no.pem: No such file or directory",
        "flag --auth-tokens: auth-tokens no.toml: No such file or directory",
    ]
    code, lines, _ = checked(
        capsys, "provider", "tls://3000", "--server", "h", "--insecure", "--target-ca", str(tmp_path)
    )
    assert code == 1
    assert "target-ca" in lines[0]


def test_directories_are_looked_at_and_none_is_made(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, run = tmp_path / "new/state", tmp_path / "new/run"
    named = ("--state-dir", str(state), "--runtime-dir", str(run))
    assert checked(capsys, "broker", *named)[0] == 0
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").write_text("a file")
    code, lines, _ = checked(capsys, "broker", *named)
    assert code == 1
    assert len(lines) == 2
    assert all("not a directory" in line for line in lines)
    (tmp_path / "new").unlink()
    run.mkdir(parents=True)
    run.chmod(0o777)
    state.mkdir()
    (state / "authorized").mkdir()
    (state / "server.key").write_text("present = 1")
    (state / "server.key").chmod(0o600)
    code, lines, _ = checked(capsys, "broker", *named)
    assert code == 1
    assert lines[0].startswith(f"{run}: others may write to it; chmod 700")
    assert "expected the secret keys" in lines[1]


def test_addresses_are_tried_and_those_in_use_may_be_those_of_the_role_that_runs(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, _ = checked(
        capsys,
        *("server", "--insecure", "--listen", "192.0.2.1:8080", "--providers", "192.0.2.1:9887"),
        *("--health", "192.0.2.1:9885"),
    )
    assert code == 1
    assert len(lines) == 3
    assert all("give an address of this machine to --" in line for line in lines)
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        assert checked(capsys, "server", "--listen", f"{HOST}:{port}", "--insecure")[0] == 0
    with closed_port() as port:
        assert checked(capsys, "server", "--listen", f"{HOST}:{port}", "--insecure")[0] == 0
        socket.create_server((HOST, port)).close()  # nothing was kept


def test_show_names_the_source_of_each_option_and_hides_secrets(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir(tmp_path / "state")
    assert cli.main(["keys", "add", "laptop", "--address", "h.example", "--state-dir", str(state.directory)]) == 0
    joined = state.join_file("laptop").read_text().strip()
    capsys.readouterr()
    (tmp_path / "goreprox.toml").write_text('[provider]\ngrace = "2m"\ntarget = ["web=3000", "tls://h:1"]')
    monkeypatch.setenv("GOREPROX_DRAIN", "3")
    options = shown(capsys, "provider", "--join", joined, "--target-insecure", "--weight", "2.5", "--memory", "1.5GiB")
    assert joined not in json.dumps(options)
    given = {name: each for name, each in options.items() if each["source"] != "default"}
    assert {name: (each["values"], each["source"]) for name, each in given.items()} == {
        "grace": (["120"], "file goreprox.toml"),
        "target": ([f"web={HOST}:3000", "tls://h:1"], "file goreprox.toml"),
        "drain": (["3"], "variable GOREPROX_DRAIN"),
        "join": (["(secret)"], "flag --join"),
        "target-insecure": (["true"], "flag --target-insecure"),
        "weight": (["2.5"], "flag --weight"),
        "memory": (["1536"], "flag --memory"),
        "name": (["laptop"], "join string"),
        "server": ([str(Join.parse(joined).addresses[0])], "join string"),
        "config": (["goreprox.toml"], "file goreprox.toml"),
    }
    assert options["half-closed-timeout"]["values"] == ["0"]
    assert options["runtime-dir"]["values"]
    _, lines, _ = checked(capsys, "provider", "--join", joined, "--show")
    assert "provider grace 120 file goreprox.toml" in [" ".join(line.split()) for line in lines]
    assert lines[-1] == "no problems found: provider can be started"


def test_show_has_what_is_published(started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    StateDir(tmp_path / "state").server_keys()
    asked = ["--publish", "http://App.example.com.", "--publish", "tcp://"]
    options = shown(capsys, "provider", "web=3000", "--server", "h", "--insecure", *asked)
    assert options["publish"]["values"] == ["http://app.example.com", "tcp://"]
    opened = ["--publish-ports", "443", "--publish-ports", "20000-20999"]
    assert shown(capsys, "server", "--insecure", *opened)["publish-ports"]["values"] == ["443", "20000-20999"]
    code, lines, _ = checked(capsys, "provider", "3000", "--server", "h", "--insecure", "--publish", "tcp://1-65535")
    assert code == 1
    assert lines[0].startswith("flag --publish: publish 'tcp://1-65535': write [SERVICE=]http://HOST, ")


@pytest.mark.parametrize(
    ("role", "required"),
    [("server", ()), ("broker", ()), ("edge", ("--broker", "h")), ("provider", ("3000", "--server", "h"))],
)
def test_show_has_every_option_of_a_role(
    started: Started, capsys: pytest.CaptureFixture[str], role: str, required: tuple[str, ...]
) -> None:
    assert shown(capsys, role, *required, "--insecure").keys() == {*sources.keys(role), "config"}


def test_a_role_is_asked_for_where_the_file_has_none(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = checked(capsys)
    assert code == 2
    assert "of which role?" in error


def test_a_file_that_is_missing_or_a_pipe_is_a_problem(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, _ = checked(capsys, "server", "--config", "none.toml")
    assert code == 1
    assert lines == ["file none.toml: No such file or directory; --config names the file"]
    os.mkfifo(tmp_path / "pipe")
    code, lines, _ = checked(capsys, "server", "--config", "pipe")
    assert code == 1
    assert "pipe" in lines[0]


def test_nothing_is_started(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(capsys, "server", "--insecure") == (0, ["no problems found: server can be started"], "")
    assert started.config is None
