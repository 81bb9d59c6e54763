"""The command `check`: what a start would find wrong, all of it, and the options that it would use."""

import json as js
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import Argument, CycloptsError, Parameter
from loguru import logger

from goreprox.cli.app import app, sources
from goreprox.cli.columns import columns
from goreprox.cli.setup import Setup
from goreprox.cli.usage import explain, origin
from goreprox.config.listed import options_of
from goreprox.config.options import PROCESS, File
from goreprox.errors import ConfigError, GoreproxError, StartError
from goreprox.process.log import configure, counted

Role = Literal["server", "edge", "broker", "provider"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a start would find wrong."""

    role: str | None
    """None: it is wrong for every role."""
    source: str | None
    """Where the option was given; None if it was not, or nothing is known of it."""
    option: str | None
    message: str

    def __str__(self) -> str:
        """Return the line, which names the source and the option once."""
        if self.source is None or self.message.startswith(self.source):
            return self.message
        is_named = self.option is None or self.message.startswith(self.option)
        return f"{self.source}: {'' if is_named else f'{self.option}: '}{self.message}"


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
        for problem in problems:
            print(problem)
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
    sources.filled = ()
    try:
        setup: Setup = app(arguments)
    except (CycloptsError, GoreproxError) as exc:
        return list(_malformed(role)) or [_problem(role, exc)], []
    from goreprox.roles.preflight import problems  # noqa: PLC0415 -- takes long, and mistakes are answered without

    return [_problem(role, exc) for exc in problems(setup.config)], list(_given(role, setup))


def _malformed(role: str) -> Iterator[Problem]:
    """Yield a problem for each value that is none of its option."""
    for argument in sources.filled:
        try:
            if argument.tokens:
                argument.convert_and_validate()
        except (CycloptsError, GoreproxError) as exc:
            yield Problem(role, origin(argument.tokens[0]), _name(argument), _message(exc))


def _problem(role: str, exc: CycloptsError | GoreproxError) -> Problem:
    """Say where the option was given that a message begins with, if it does."""
    message = _message(exc)
    first = message.partition(" ")[0].rstrip(":")
    argument = next((each for each in sources.filled if _name(each) == first), None)
    if argument is None:
        return Problem(role, None, None, message)
    return Problem(role, origin(argument.tokens[0]) if argument.tokens else None, first, message)


def _message(exc: CycloptsError | GoreproxError) -> str:
    return explain(exc) if isinstance(exc, CycloptsError) else str(exc)


def _given(role: str, setup: Setup) -> Iterator[Given]:
    process = setup.config.process
    known = options_of(setup.config) | {"name": (process.own_name,), "runtime-dir": (str(process.lock_dir),)}
    is_joined = any(_name(each) in ("join", "join-file") and each.tokens for each in sources.filled)
    for argument in sources.filled:
        name, tokens = _name(argument), argument.tokens
        if not argument.parse or argument.children:
            continue
        values = known.get(name, tuple(token.value for token in tokens))
        if name == "join" and not tokens:
            values = ()
        by_default = "join string" if is_joined and name in ("name", "broker", "server") else "default"
        yield Given(role, name, values, origin(tokens[0]) if tokens else by_default)


def _name(argument: Argument) -> str:
    return argument.name.removeprefix("--").lower()


def _table(given: Sequence[Given]) -> str:
    rows = []
    for each in given:
        first, *more = each.values or ("-",)
        rows += [(each.role, each.option, first, each.source), *(("", "", value, "") for value in more)]
    return columns(rows)
