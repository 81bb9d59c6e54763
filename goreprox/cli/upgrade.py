"""The command `upgrade`."""

from typing import Final

from goreprox.cli.options import ALL, AskOptions
from goreprox.control.client import Reply, ask_all, leading
from goreprox.errors import ControlError
from goreprox.process.log import counted

UPGRADE_S: Final = 3600.0
"""Deadline: connections with TLS have `--drain` seconds, which may be many; the process goes on without us, too."""


def upgrade(
    *,
    of: AskOptions = ALL,
) -> None:
    """Replace processes of this machine by the code that is installed now, and print what has become of them."""
    replies = ask_all(of.directories, "upgrade", roles=leading(of.role), name=of.name, deadline_s=UPGRADE_S)
    for reply in replies:
        if reply.problem is None and reply.result is not None:  # a worker leaves it to its parent
            print(f"{reply.who}: {_line(reply)}")
    if problems := [reply.problem for reply in replies if reply.problem is not None]:
        raise ControlError("; ".join(problems))


def _line(reply: Reply) -> str:
    match reply.result:
        case {"from": before, "to": after, "connections": int(connections), "paused_s": paused_s}:
            return f"upgraded from {before} to {after}; {counted(connections, 'connection')} went on after {paused_s} s"
    return "upgraded"
