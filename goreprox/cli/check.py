"""The command `check`: what a start would find wrong, all of it, and the options that it would use."""

import json as js
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from loguru import logger

from goreprox.cli.app import sources
from goreprox.cli.columns import columns
from goreprox.cli.given import given_options
from goreprox.cli.options import Role
from goreprox.cli.problems import Problem, examine_all, problem
from goreprox.cli.setup import Setup
from goreprox.config.listed import Given
from goreprox.config.options import PROCESS, File
from goreprox.errors import StartError
from goreprox.process.log import configure, counted


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
    problems: dict[str, Problem] = {}
    given: list[Given] = []
    for each, found in examine_all("check", role, options, config):
        wrong, given_here = (found, []) if isinstance(found, list) else _examine(str(each), found)
        problems |= {str(problem): problem for problem in wrong if str(problem) not in problems}
        given += given_here
    if json:
        print(
            js.dumps(
                {"problems": list(map(asdict, problems.values())), "options": list(map(asdict, given)) if show else []}
            )
        )
    else:
        for line in problems:
            print(line)
        if show and given:
            print(_table(given))
        if not problems:
            print(f"no problems found: {' and '.join(dict.fromkeys(each.role for each in given))} can be started")
    if problems:
        raise StartError(f"{counted(len(problems), 'problem')} found; nothing would be started")


def _examine(role: str, setup: Setup) -> tuple[list[Problem], list[Given]]:
    """Return what a start of the role would find wrong, and what is given."""
    from goreprox.roles.preflight import problems  # noqa: PLC0415 -- takes long, and mistakes need no more

    return [problem(role, exc) for exc in problems(setup.config)], list(given_options(role, setup.config))


def _table(given: Sequence[Given]) -> str:
    rows = []
    for each in given:
        first, *more = each.values or ("-",)
        rows += [(each.role, each.option, first, each.source), *(("", "", value, "") for value in more)]
    return columns(rows)
