"""Asks the processes which options they run with, and where each comes from."""

from collections.abc import Sequence
from pathlib import Path

from goreprox.control.client import ask, leading
from goreprox.errors import ControlError


async def options_of(directories: Sequence[Path]) -> list[dict[str, object]]:
    """Return the options of each process; workers have those of their parent, who tells them."""
    try:
        replies = await ask(directories, "options", roles=leading(None))
    except ControlError:  # there is no process
        return []
    return [{"who": reply.who, "options": reply.result} for reply in replies if isinstance(reply.result, list)]
