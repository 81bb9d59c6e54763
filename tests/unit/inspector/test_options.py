"""Which requests `--inspect` keeps, however it is written."""

import pytest

from goreprox.cli import main as cli
from goreprox.config.listed import options_of
from tests.support.commands import Started

WEB = ("--listen", "http://8080=web")


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ((), ()),
        (("--inspect",), ("*",)),
        (("--inspect", "--via"), ("*",)),
        (("--inspect", "web"), ("web",)),
        (("--inspect=web", "--inspect", "*"), ("web", "*")),
    ],
)
def test_a_name_may_follow_the_flag(started: Started, arguments: tuple[str, ...], kept: tuple[str, ...]) -> None:
    assert cli.main(["server", *WEB, *arguments, "--insecure"]) == 0
    assert options_of(started.config)["inspect"] == kept
    http = started.config.clients.http
    assert http.inspects("web") == bool(kept) and http.inspects("") == ("*" in kept)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((*WEB, "--inspect", "api"), "inspect api: no client can ask for that service; services are web, and *"),
        (("--inspect",), "inspect: there is no http:// or https:// to listen on"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["server", *arguments, "--insecure"]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
