"""The command `drain`."""

from typing import Final

from goreprox.cli.options import ALL, AskOptions
from goreprox.control.client import ask_all
from goreprox.errors import ControlError
from goreprox.process.log import counted

ROLES: Final = ("server", "edge", "provider")
"""Those that have connections."""


def drain(
    *,
    of: AskOptions = ALL,
) -> None:
    """Let the processes of this machine take no new connections, and print how many they still have."""
    if of.role == "broker":
        raise ControlError("a broker has no connections to drain; stop it: peers go on over other brokers")
    roles = ROLES if of.role is None else (of.role,)
    replies = ask_all(of.directories, "drain", roles=roles, name=of.name)
    for reply in replies:
        match reply.result:
            case {"connections": int(left)}:
                print(f"{reply.who}: draining, {counted(left, 'connection')} open")
    if problems := [reply.problem for reply in replies if reply.problem is not None]:
        raise ControlError("; ".join(problems))
