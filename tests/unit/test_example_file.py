"""The example of a file of options holds all of them, as they are declared.

`python -m tests.unit.test_example_file >deploy/goreprox.toml` writes it anew.
"""

import json
import re
import textwrap
import tomllib
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from goreprox.cli import main as cli
from goreprox.cli.app import COMMANDS, app, sources
from goreprox.config.addresses import Address
from tests.support.commands import Started

FILE: Final = Path(__file__).parents[2] / "deploy/goreprox.toml"
COLUMNS: Final = 100
HEAD: Final = """\
# An example of goreprox.toml: every option that there is, with its default or, if it has none, the form of its value.
#
# goreprox reads goreprox.toml in its working directory, or the file that --config (GOREPROX_CONFIG) names. An option
# here gives way to the variable GOREPROX_OPTION, and that to the flag --option. Times are seconds or like "5m", sizes
# MiB or like "1.5GiB". Options at the top hold for every command that has them; those of a table win over them.
"""


class Option(NamedTuple):
    """What is written of one."""

    key: str
    help: str
    value: str


def options(command: str) -> list[Option]:
    found = []
    for argument in app[command].assemble_argument_collection(parse_docstring=True):
        key = argument.name.removeprefix("--")
        if key in (argument.name, "config"):
            continue
        default, shown = argument.field_info.default, argument.show_default
        is_list = argument.token_count()[1]
        if isinstance(default, bool):
            value = json.dumps(default)
        elif shown:
            text = str(shown(default) if callable(shown) else default if shown is True else shown)
            value = json.dumps(text) if isinstance(default, str | Address) else text
        else:
            form = json.dumps(argument.parameter.metavar or key.upper())
            value = f"[{form}]" if is_list else form
        found.append(Option(key, " ".join((argument.parameter.help or "").split()), value))
    return found


def text() -> str:
    by_command = {command: options(command) for command in COMMANDS}
    counted = Counter(option for found in by_command.values() for option in found)
    common = [option for option, times in counted.items() if times > 1]
    sections = [HEAD, *map(_written, common)]
    for command, found in by_command.items():
        sections += [f"[{command}]\n", *(_written(option) for option in found if option not in common)]
    return "\n".join(sections)


def _written(option: Option) -> str:
    lines = textwrap.wrap(option.help, COLUMNS, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return "\n".join([*lines, f"#{option.key} = {option.value}", ""])


def test_the_example_file_is_generated_from_the_declarations() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "write it anew: see this module's first lines"


def test_the_example_file_changes_nothing_and_each_of_its_options_is_accepted(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = FILE.read_text(encoding="utf-8")
    assert set(tomllib.loads(example)) == set(COMMANDS)
    known = {key for command in COMMANDS for key in sources.keys(command)}
    enabled = re.sub(r"^#(?=[a-z-]+ = )", "", example, flags=re.MULTILINE)
    document = tomllib.loads(enabled)
    assert {*document, *(key for table in document.values() if isinstance(table, dict) for key in table)} >= known
    for command, required in (("server", []), ("broker", []), ("edge", ["--broker", "h"])):
        monkeypatch.chdir(tmp_path)
        assert cli.main([command, "--insecure", *required]) == 0
        default = started.config
        # Those that have a default; the others show a form.
        form = re.compile(r'^[a-z-]+ = \[?"[^"]*[A-Z]{2}[^"]*"\]?\n', re.MULTILINE)
        (tmp_path / "goreprox.toml").write_text(form.sub("", enabled))
        assert cli.main([command, "--insecure", *required]) == 0
        assert started.config == default
        (tmp_path / "goreprox.toml").unlink()


if __name__ == "__main__":
    print(text(), end="")  # noqa: T201
