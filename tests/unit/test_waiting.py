"""Clients for whom there is no provider: how long they wait, however long the machine slept meanwhile."""

import asyncio
import time
from typing import cast

import pytest

from goreprox import waiting
from goreprox.bridge import Joint
from goreprox.waiting import WaitingRoom
from tests.helpers import eventually


def test_nobody_outwaits_a_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_S", 0.01)
    slept_s = 0.0
    gone: list[Joint] = []

    async def main() -> None:
        nonlocal slept_s
        room = WaitingRoom(
            patience_s=1000.0, clock=lambda: time.monotonic() + slept_s, give_up=lambda joint, _: gone.append(joint)
        )
        client = cast("Joint", object())
        room.enter(client)
        slept_s = 1000.0
        await eventually(lambda: gone == [client])

    asyncio.run(main())
