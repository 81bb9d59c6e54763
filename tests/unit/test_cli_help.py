"""Help that fits a terminal of 80 columns, and the commands that newcomers try."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from goreprox import __version__, build
from goreprox.cli import main as cli
from goreprox.cli.app import COMMANDS, app
from goreprox.cli.helptext import COLUMNS

HELPFUL = [
    (),
    *((command,) for command in (*COMMANDS, "keys", "token", "completion", "check", "doctor", "dashboard")),
    *(("keys", command) for command in ("add", "list", "show", "set", "revoke", "rotate")),
    *(("token", command) for command in ("new", "list", "revoke")),
]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", HELPFUL, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 200, 40])
def test_help_fits_80_columns_and_explains_variables_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], columns: int
) -> None:
    monkeypatch.setattr(app, "console", Console(width=columns))
    text = shown(capsys, *command, "--help")
    assert max(map(len, text.splitlines())) <= COLUMNS
    words = set(re.split(r"\s+", text))
    for option in options(command):
        assert option in words
    assert text.count("GOREPROX_") <= 1
    assert not re.search(r"\b(STR|FLOAT|INT|(?<!unix:)PATH|CHOICE)\b", text)
    assert text.startswith("Usage: goreprox")


def options(command: tuple[str, ...]) -> list[str]:
    found = app
    for name in command:
        found = found[name]
    if found.default_command is None:
        return []
    return [argument.name for argument in found.assemble_argument_collection() if argument.name.startswith("--")]


@pytest.mark.parametrize("command", [c for c in HELPFUL if c], ids=" ".join)
def test_help_of_each_command_ends_with_examples_that_parse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr(app, "console", Console(width=COLUMNS))
    examples = shown(capsys, *command, "--help").split("Examples:\n")[1].splitlines()
    assert examples
    for line in examples:
        words = shlex.split(line.partition(">")[0], comments=True)
        app.parse_args(words[words.index("goreprox") + 1 :], exit_on_error=False, print_error=False)


def test_commands_for_a_first_start_are_listed_first(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    order = ["server", "provider", "keys", "status", "demo", "edge", "broker", "token"]
    assert re.findall(rf"^  ({'|'.join(order)})\b", text, re.MULTILINE) == order


def test_help_and_version_have_every_usual_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    for version in ("--version", "-V", "version"):
        assert shown(capsys, version).strip() == f"{__version__} ({build()})"
    assert shown(capsys) == shown(capsys, "help") == shown(capsys, "--help") == shown(capsys, "-h")
    assert shown(capsys, "help", "provider") == shown(capsys, "provider", "--help")
    assert shown(capsys, "help", "keys", "add") == shown(capsys, "keys", "add", "--help")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed_and_no_file_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    script = shown(capsys, "completion", shell)
    assert "provider" in script and "grace" in script
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["--help", "version", "keys add KEY --state-dir DIR"])
def test_closed_standard_streams_cause_no_traceback(tmp_path: Path, command: str, closed: str) -> None:
    line = f"{shlex.quote(sys.executable)} -m goreprox {command.replace('DIR', shlex.quote(str(tmp_path)))} {closed}"
    done = subprocess.run(["/bin/sh", "-c", line], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_names_of_keys_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GOREPROX_STATE_DIR", str(tmp_path / "state"))
    assert shown(capsys, "__complete", "keys", "show", "").split() == ["begin"], "there is no state directory"
    for name in ("laptop", "phone"):
        assert cli.main(["keys", "add", name]) == 0
    for command in ("show", "set", "revoke"):
        capsys.readouterr()
        assert shown(capsys, "__complete", "keys", command, "").split() == ["begin", "laptop", "phone"]
    monkeypatch.delenv("GOREPROX_STATE_DIR")
    option = ("--state-dir", str(tmp_path / "state"))
    assert shown(capsys, "__complete", "keys", "revoke", *option, "").split() == ["begin", "laptop", "phone"]
