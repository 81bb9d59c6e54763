"""Roles whose options are in a file, and reloads of them."""

import asyncio
import json
from pathlib import Path
from typing import Any

from goreprox.control.client import Reply, ask_all
from tests.support.waiting import DEADLINE_S


def configure(tmp: Path, role: str, **options: object) -> None:
    """Write the file of a role."""
    lines = [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in options.items()]
    (tmp / f"{role}.toml").write_text("\n".join([f"[{role}]", *lines]))


async def reloaded(tmp: Path, role: str) -> Reply:
    """Ask a role for a reload, as the command does."""
    (reply,) = await asyncio.to_thread(ask_all, [tmp / "run"], "reload", roles=(role,), deadline_s=DEADLINE_S)
    return reply


async def apply(tmp: Path, role: str, **options: object) -> Any:
    """Reload a role with other options; return what has changed."""
    configure(tmp, role, **options)
    reply = await reloaded(tmp, role)
    assert reply.problem is None
    return reply.result
