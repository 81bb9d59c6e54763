"""The command `reload`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from goreprox.config.options import Directory
from goreprox.config.paths import runtime_dirs
from goreprox.control.client import PARENT, ROLES, ask_all
from goreprox.errors import ControlError

Role = Literal["server", "edge", "broker", "provider"]
RELOAD_S = 60.0
"""Deadline: workers, too, take over the configuration one by one."""


def reload(
    *,
    name: Annotated[str | None, Parameter(metavar="NAME")] = None,
    role: Annotated[Role | None, Parameter(metavar="ROLE")] = None,
    runtime_dir: Directory = None,
) -> None:
    """Let the processes of this machine read their configuration again, and print what has changed.

    Parameters
    ----------
    name
        Reload only processes with this name.
    role
        Reload only processes of this role.
    runtime_dir
        Look for processes in this directory. [default: that of roles, and /run/goreprox*]
    """
    directories = [runtime_dir] if runtime_dir else runtime_dirs()
    roles = ROLES if role is None else (role,)
    if "edge" in roles:
        roles = (*roles, PARENT)
    replies = ask_all(directories, "reload", roles=roles, name=name, deadline_s=RELOAD_S)
    done = [reply for reply in replies if isinstance(reply.result, dict)]  # a worker leaves it to its parent
    for reply in done:
        for line in _lines(reply.result):
            print(f"{reply.who}: {line}" if len(done) > 1 else line)
    if not done and not any(reply.problem for reply in replies):
        raise ControlError(
            "there are workers, but no parent that could reload them; name its directory with --runtime-dir"
        )
    if problems := [reply.problem for reply in replies if reply.problem is not None]:
        raise ControlError("; ".join(problems))


def _lines(result: object) -> list[str]:
    match result:
        case {"applied": list(applied), "kept": list(kept)}:
            return [*map(str, applied), *(f"! {line}" for line in kept)] or ["nothing has changed"]
    return ["reloaded"]
