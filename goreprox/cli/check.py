"""The command `check`: what a start would find wrong, all of it, and the options that it would use."""

import json as js
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, get_args

from cyclopts import Parameter
from loguru import logger

from goreprox.cli.app import sources
from goreprox.cli.columns import columns
from goreprox.cli.options import Role
from goreprox.cli.problems import Problem, examine, option, problem
from goreprox.cli.setup import Setup
from goreprox.cli.usage import origin
from goreprox.config.listed import options_of
from goreprox.config.options import PROCESS, File
from goreprox.errors import ConfigError, StartError
from goreprox.process.log import configure, counted


@dataclass(frozen=True, slots=True)
class Given:
    """An option, its values, and where they come from."""

    role: str
    option: str
    values: tuple[str, ...]
    source: str


def check(
    role: Annotated[Role | None, Parameter(metavar="ROLE")] = None,
    /,
    *options: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    config: Annotated[File, Parameter(group=PROCESS)] = None,
    show: bool = False,
    json: bool = False,
) -> None:
    """Check what a role would be started with, without starting it.

    Parameters
    ----------
    role
        Check this role. [default: those that have a table in the file]
    config
        Read options from this TOML file. [default: goreprox.toml in the current directory, if there is one]
    show
        Print all options, with their values and where each comes from: flag, variable, file or default.
    json
        Print a JSON object with the problems, and with --show the options.
    """
    configure("warning", as_json=False)
    for line in sources.unknown_variables():
        logger.bind(event="unknown_variable").warning("{}", line)
    problems, given = _examine(role, options, config)
    if json:
        print(js.dumps({"problems": list(map(asdict, problems)), "options": list(map(asdict, given)) if show else []}))
    else:
        for each in problems:
            print(each)
        if show and given:
            print(_table(given))
        if not problems:
            print(f"no problems found: {' and '.join(dict.fromkeys(each.role for each in given))} can be started")
    if problems:
        raise StartError(f"{counted(len(problems), 'problem')} found; nothing would be started")


def _examine(role: Role | None, options: Sequence[str], config: Path | None) -> tuple[list[Problem], list[Given]]:
    """Return what is wrong, and what is given.

    Raises:
        ConfigError: it is not known for which role.
    """
    try:
        if config is not None and config.exists() and not config.is_file():
            raise ConfigError(f"file {config}: it is not a regular file, and has to be read twice; name one that is")
        path, document = sources.read(config)
    except ConfigError as exc:
        return [Problem(None, None, None, str(exc))], []
    if path is not None and (wrong := list(sources.problems(document, path))):
        return [Problem(None, f"file {path}", None, str(exc)) for exc in wrong], []
    roles = [each for each in get_args(Role) if isinstance(document.get(each), dict)] if role is None else [role]
    if not roles:
        raise ConfigError("check: of which role? name it, like `goreprox check server`")
    problems: dict[str, Problem] = {}
    given: list[Given] = []
    named = () if config is None else ("--config", str(config))
    for each in roles:
        wrong_here, given_here = _examine_role(each, [each, *options, *named])
        problems |= {str(problem): problem for problem in wrong_here if str(problem) not in problems}
        given += given_here
    return list(problems.values()), given


def _examine_role(role: str, arguments: Sequence[str]) -> tuple[list[Problem], list[Given]]:
    found = examine(role, arguments)
    if isinstance(found, list):
        return found, []
    from goreprox.roles.preflight import problems  # noqa: PLC0415 -- takes long, and mistakes need no more

    return [problem(role, exc) for exc in problems(found.config)], list(_given(role, found))


def _given(role: str, setup: Setup) -> Iterator[Given]:
    process = setup.config.process
    known = options_of(setup.config) | {"name": (process.own_name,), "runtime-dir": (str(process.lock_dir),)}
    is_joined = any(option(each) in ("join", "join-file") and each.tokens for each in sources.filled)
    for argument in sources.filled:
        name, tokens = option(argument), argument.tokens
        if not argument.parse or argument.children:
            continue
        values = known.get(name, tuple(token.value for token in tokens))
        if name == "join" and not tokens:
            values = ()
        by_default = "join string" if is_joined and name in ("name", "broker", "server") else "default"
        yield Given(role, name, values, origin(tokens[0]) if tokens else by_default)


def _table(given: Sequence[Given]) -> str:
    rows = []
    for each in given:
        first, *more = each.values or ("-",)
        rows += [(each.role, each.option, first, each.source), *(("", "", value, "") for value in more)]
    return columns(rows)
