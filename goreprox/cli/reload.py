"""The command `reload`."""

from typing import Final

from goreprox.cli.options import ALL, AskOptions
from goreprox.control.client import ask_all, leading
from goreprox.errors import ControlError

RELOAD_S: Final = 60.0
"""Deadline: workers, too, take over the configuration one by one."""


def reload(
    *,
    of: AskOptions = ALL,
) -> None:
    """Let the processes of this machine read their configuration again, and print what has changed."""
    replies = ask_all(of.directories, "reload", roles=leading(of.role), name=of.name, deadline_s=RELOAD_S)
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
