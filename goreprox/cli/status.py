"""The command `status`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from goreprox.cli.options import FileOptions
from goreprox.cli.report import show, show_json
from goreprox.config.options import Directory
from goreprox.config.paths import runtime_dirs
from goreprox.errors import ControlError
from goreprox.status.query import ask_all

Role = Literal["server", "edge", "broker", "provider"]


def status(
    *,
    json: bool = False,
    verbose: bool = False,
    name: Annotated[str | None, Parameter(metavar="NAME")] = None,
    role: Annotated[Role | None, Parameter(metavar="ROLE")] = None,
    runtime_dir: Directory = None,
    file: FileOptions | None = None,  # noqa: ARG001 - `Sources.read_file` has used it
) -> None:
    """Ask the processes of this machine for their status, and print it.

    Parameters
    ----------
    json
        Print a JSON array, one object per process, as docs/status.md describes.
    verbose
        Show everything, as tables, in the terms of docs/architecture.md.
    name
        Show only processes with this name.
    role
        Show only processes of this role.
    runtime_dir
        Look for processes in this directory. [default: that of roles, and /run/goreprox*]
    """
    responses = ask_all([runtime_dir] if runtime_dir else runtime_dirs(), role=role, name=name)
    if json:
        show_json(responses.documents)
    else:
        show(responses.documents, verbose=verbose)
    if responses.problems:
        raise ControlError("; ".join(responses.problems))
