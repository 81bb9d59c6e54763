"""Clients for whom there is no provider: how long they wait, however long the machine slept meanwhile."""

import time

import pytest

from goreprox.protocol.budget import Budget
from goreprox.protocol.stream import Stream
from goreprox.roles import waiting
from goreprox.roles.waiting import WaitingRoom
from goreprox.tunnel.connections import StreamOwner
from tests.support.waiting import eventually


class Client:
    def __init__(self, service: str) -> None:
        self.began_at = 0.0
        budget = Budget(total_bytes=1 << 20, max_streams=1)
        self.stream = Stream(opener=True, service=service, client="test", budget=budget)

    def abort(self, reason: str) -> None: ...


async def test_those_who_wait_are_found_by_service_in_order() -> None:
    room = WaitingRoom(patience_s=1000.0, clock=time.monotonic, give_up=lambda _joint, _reason: None)
    web, ssh = [Client("web") for _ in range(3)], Client("ssh")
    for client in (*web, ssh):
        room.enter(client)
    assert (room.line("web"), room.line("ssh"), room.line("none"), len(room)) == (web, [ssh], [], 4)
    room.leave(web[0])
    room.leave(ssh)
    room.leave(ssh)
    assert (room.line("web"), set(room.services), len(room)) == (web[1:], {"web"}, 2)


async def test_nobody_outwaits_a_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_S", 0.01)
    slept_s = 0.0
    gone: list[StreamOwner] = []
    room = WaitingRoom(
        patience_s=1000.0, clock=lambda: time.monotonic() + slept_s, give_up=lambda joint, _: gone.append(joint)
    )
    client = Client("web")
    room.enter(client)
    slept_s = 1000.0
    await eventually(lambda: gone == [client])
