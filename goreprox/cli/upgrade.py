"""The command `upgrade`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from goreprox.config.options import Directory
from goreprox.config.paths import runtime_dirs
from goreprox.control.client import ROLES, Reply, ask_all
from goreprox.errors import ControlError
from goreprox.process.log import counted

Role = Literal["server", "edge", "broker", "provider"]
UPGRADE_S = 3600.0
"""Deadline: connections with TLS have `--drain` seconds, which may be many; the process goes on without us, too."""


def upgrade(
    *,
    name: Annotated[str | None, Parameter(metavar="NAME")] = None,
    role: Annotated[Role | None, Parameter(metavar="ROLE")] = None,
    runtime_dir: Directory = None,
) -> None:
    """Replace processes of this machine by the code that is installed now, and print what has become of them.

    Parameters
    ----------
    name
        Upgrade only processes with this name.
    role
        Upgrade only processes of this role.
    runtime_dir
        Look for processes in this directory. [default: that of roles, and /run/goreprox*]
    """
    directories = [runtime_dir] if runtime_dir else runtime_dirs()
    roles = ROLES if role is None else (role,)
    replies = ask_all(directories, "upgrade", roles=roles, name=name, deadline_s=UPGRADE_S)
    for reply in replies:
        if reply.problem is None:
            print(f"{reply.who}: {_line(reply)}")
    if problems := [reply.problem for reply in replies if reply.problem is not None]:
        raise ControlError("; ".join(problems))


def _line(reply: Reply) -> str:
    match reply.result:
        case {"from": before, "to": after, "connections": int(connections), "paused_s": paused_s}:
            return f"upgraded from {before} to {after}; {counted(connections, 'connection')} went on after {paused_s} s"
    return "upgraded"
