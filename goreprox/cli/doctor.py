"""The command `doctor`: whether a role can do its work on this machine, and what to do where it cannot."""

import json as js
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter
from loguru import logger

from goreprox.cli.app import sources
from goreprox.cli.options import Role
from goreprox.cli.problems import Problem, examine_all
from goreprox.cli.setup import Setup
from goreprox.config.options import PROCESS, File
from goreprox.errors import StartError
from goreprox.process.log import configure, counted, printable


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a role."""

    role: str | None
    """None: what is wrong is so for every role."""
    check: str
    subject: str
    state: str
    message: str
    remedy: str | None

    def __str__(self) -> str:
        remedy = "" if self.remedy is None else f"; {self.remedy}"
        return f"{self.state:<8}{self.role or '':<9}{self.check:<12}{self.subject}: {self.message}{remedy}"


def doctor(
    role: Annotated[Role | None, Parameter(metavar="ROLE")] = None,
    /,
    *options: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    config: Annotated[File, Parameter(group=PROCESS)] = None,
    json: bool = False,
) -> None:
    """Check what a role needs: this machine, its brokers and keys, services and targets.

    Parameters
    ----------
    role
        Examine this role. [default: those that have a table in the file]
    config
        Read options from this TOML file. [default: goreprox.toml in the current directory, if there is one]
    json
        Print a JSON object with all checks.
    """
    configure("warning", as_json=False)
    logger.disable("brokers")  # what links log is in the results
    for line in sources.unknown_variables():
        logger.bind(event="unknown_variable").warning("{}", line)
    checks: list[Check] = []
    for each, found in examine_all("doctor", role, options, config):
        for check in _checks(each, found):
            checks.append(check)
            if not json:
                print(printable(str(check)), flush=True)
    if json:
        print(js.dumps({"checks": list(map(asdict, checks))}))
    failed = sum(check.state == "failed" for check in checks)
    if failed:
        raise StartError(f"{counted(failed, 'check')} failed")


def _checks(role: str | None, found: Setup | list[Problem]) -> Iterator[Check]:
    if isinstance(found, list):
        for problem in found:
            yield Check(role, "options", problem.source or problem.option or "options", "failed", str(problem), None)
        return
    from goreprox.roles.doctor import examine  # noqa: PLC0415 -- takes long, and mistakes need no more

    yield Check(role, "options", "all" if found.file is None else f"file {found.file}", "ok", "well-formed", None)
    for result in examine(found.config):
        yield Check(role, result.check, result.subject, result.state.value, result.message, result.remedy)
