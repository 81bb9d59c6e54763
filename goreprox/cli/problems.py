"""What is wrong with the options of a role: all of it, each with where it was given."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cyclopts import Argument, CycloptsError

from goreprox.cli.app import app, sources
from goreprox.cli.options import Role
from goreprox.cli.setup import Setup
from goreprox.cli.usage import explain, origin
from goreprox.errors import ConfigError, GoreproxError
from goreprox.process.log import redacted


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


def examine_all(
    command: str, role: Role | None, options: Sequence[str], config: Path | None
) -> Iterator[tuple[str | None, Setup | list[Problem]]]:
    """Yield what `examine` returns for a role, or for each role that has a table in the file; None: for every role.

    `sources.filled` has the options of the role that was yielded last.

    Raises:
        ConfigError: it is not known for which role the `command` is.
    """
    try:
        if config is not None and config.exists() and not config.is_file():
            raise ConfigError(f"file {config}: it is not a regular file, and has to be read twice; name one that is")
        path, document = sources.read(config)
    except ConfigError as exc:
        yield None, [Problem(None, None, None, str(exc))]
        return
    if path is not None and (wrong := list(sources.problems(document, path))):
        yield None, [Problem(None, f"file {path}", None, str(exc)) for exc in wrong]
        return
    roles = [each for each in get_args(Role) if isinstance(document.get(each), dict)] if role is None else [role]
    if not roles:
        raise ConfigError(f"{command}: of which role? name it, like `goreprox {command} server`")
    named = () if config is None else ("--config", str(config))
    for each in roles:
        yield each, examine(each, [each, *options, *named])


def examine(role: str, arguments: Sequence[str]) -> Setup | list[Problem]:
    """Return what the arguments of a role ask for, or what is wrong with them."""
    sources.filled = ()
    try:
        setup: Setup | None = app(list(arguments))
        if setup is None:  # they ask for help
            raise ConfigError(f"{role}: there is nothing to run")
    except (CycloptsError, GoreproxError) as exc:
        return list(_malformed(role)) or [problem(role, exc)]
    return setup


def problem(role: str, exc: CycloptsError | GoreproxError) -> Problem:
    """Say where the option was given that a message begins with, if it does."""
    message = _message(exc)
    first = message.partition(" ")[0].rstrip(":")
    argument = next((each for each in sources.filled if option(each) == first), None)
    if argument is None:
        return Problem(role, None, None, message)
    return Problem(role, origin(argument.tokens[0]) if argument.tokens else None, first, message)


def option(argument: Argument) -> str:
    """Return the name of an option."""
    return argument.name.removeprefix("--").lower()


def _malformed(role: str) -> Iterator[Problem]:
    """Yield a problem for each value that is none of its option."""
    for argument in sources.filled:
        try:
            if argument.tokens:
                argument.convert_and_validate()
        except (CycloptsError, GoreproxError) as exc:
            yield Problem(role, origin(argument.tokens[0]), option(argument), _message(exc))


def _message(exc: CycloptsError | GoreproxError) -> str:
    return redacted(explain(exc) if isinstance(exc, CycloptsError) else str(exc))
