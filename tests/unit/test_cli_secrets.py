"""A join string in the wrong place is not shown: of any command, as flag, variable, key of the file or argument."""

import contextlib
import io
import itertools
from pathlib import Path
from typing import Final

import pytest
from loguru import logger

import goreprox.cli.demo
from goreprox.cli import main as cli
from goreprox.cli.app import COMMANDS, sources
from goreprox.process.log import configure, redacted, say
from tests.support.commands import Started

SECRET: Final = "AXCSabcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
JOIN: Final = f"goreprox://{SECRET}@publicbox:9887"
MANGLED: Final = (JOIN, JOIN.replace("//", "/"), f"{JOIN[:40]} {JOIN[40:]}", f"{JOIN[:40]}\n{JOIN[40:]}", JOIN[:50])
"""As it is; as a path; wrapped where it was copied; cut off."""
OTHERS: Final = (
    ("keys", "add"),
    ("keys", "list"),
    ("keys", "show"),
    ("keys", "revoke"),
    ("token", "new"),
    ("token", "revoke"),
    ("token", "list"),
)
"""Commands with arguments of their own."""
ONE_OF_EACH_KIND: Final = (
    *("listen", "server", "route", "allow", "proxy", "join-file", "tls-cert", "runtime-dir"),
    *("workers", "weight", "memory", "grace", "insecure", "log-level", "name", "host-header"),
)
"""Options by what they take: addresses, networks, URLs, files, numbers, sizes, times, switches, words."""


def shown(*arguments: str) -> str:
    """Run a command; return all that it prints and logs."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        cli.main(arguments)
        logger.remove()  # as the end of the process does
    return output.getvalue()


def holds_secret(text: str) -> bool:
    return any(SECRET[at : at + 12] in text for at in range(len(SECRET) - 12))


def places() -> dict[str, str]:
    """Return every option, and a command that has it."""
    return {key: command for command in COMMANDS for key in [*sources.keys(command), "config"]}


@pytest.fixture(autouse=True)
def _at_home(started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(**_: object) -> None:
        pass

    monkeypatch.setattr(goreprox.cli.demo, "run", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOREPROX_LOG_LEVEL", "trace")


@pytest.mark.parametrize("key", places())
def test_no_option_shows_a_join_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    command = places()[key]
    said = shown(command, f"--{key}={JOIN}", "--insecure")
    with monkeypatch.context() as variable:
        variable.setenv(f"GOREPROX_{key.upper().replace('-', '_')}", JOIN)
        said += shown(command)
    (tmp_path / "goreprox.toml").write_text(f'[{command}]\n{key} = "{JOIN}"')
    said += shown(command)
    assert said
    assert not holds_secret(said), said


@pytest.mark.long
@pytest.mark.parametrize("key", ONE_OF_EACH_KIND)
def test_no_option_shows_a_join_string_in_any_form(tmp_path: Path, key: str) -> None:
    command = places()[key]
    said = "".join(shown(command, f"--{key}", value) for value in MANGLED)
    for content in (f'{key} = "{JOIN}"', f'{key} = ["{JOIN}"]', f'{key} = "{JOIN}'):
        (tmp_path / "goreprox.toml").write_text(content)
        said += shown(command)
    assert said
    assert not holds_secret(said), said


@pytest.mark.parametrize("command", [*((name,) for name in COMMANDS), *OTHERS, ()], ids=" ".join)
@pytest.mark.parametrize("value", MANGLED[:3:2])
def test_no_argument_shows_a_join_string(command: tuple[str, ...], value: str) -> None:
    said = ""
    for more in ((value,), (f"--{value}",), ("--auth-tokens", value, value), ("--state-dir", value, value)):
        said += shown(*command, *more)
    assert not holds_secret(said), said


@pytest.mark.long
def test_neither_a_file_of_another_kind_nor_an_unknown_key_shows_a_join_string(tmp_path: Path) -> None:
    said = ""
    for value, form in itertools.product(MANGLED, ("{}", '"{}" = 1', '[server]\n"{}" = 1', "x = {}", '["{}"]\na = 1')):
        (tmp_path / "file").write_text(form.format(value))
        (tmp_path / "file").chmod(0o600)
        for option in ("--config", "--join-file", "--auth-tokens", "--tls-cert"):
            said += shown("server", "--insecure", option, "file")
        said += shown("provider", "1", "--config", "file") + shown("token", "list", "--auth-tokens", "file")
    assert said
    assert not holds_secret(said), said


@pytest.mark.parametrize("as_json", [False, True])
def test_no_log_line_shows_a_join_string(as_json: bool) -> None:
    output = io.StringIO()
    with contextlib.redirect_stderr(output):
        configure("info", as_json=as_json)
        for value in MANGLED:
            logger.bind(path=value, paths=[value]).warning("cannot read {}", value)
            try:
                int(value)
            except ValueError:
                logger.exception("no")
            say(value)
        logger.remove()
    assert not holds_secret(output.getvalue()), output.getvalue()


def test_other_text_is_not_redacted() -> None:
    for text in ("leave goreprox:// out; write HOST:PORT", "expected goreprox://…@HOST:PORT; `goreprox keys add`"):
        assert redacted(text) == text
