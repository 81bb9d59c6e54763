"""Streams without a provider: in which order they are found, and when they time out, though the machine slept."""

import time

import pytest

from goreprox.protocol.budget import Budget
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.roles import pending
from goreprox.roles.pending import PendingQueue
from goreprox.tunnel.connections import StreamOwner
from tests.support.waiting import eventually


class Client:
    def __init__(self, service: str) -> None:
        self.began_at = 0.0
        budget = Budget(total_bytes=1 << 20, max_streams=1)
        self.stream = Stream(opener=True, service=service, client="test", budget=budget)

    def abort(self, reason: str, code: EndCode) -> None: ...


async def test_pending_streams_are_found_by_service_in_order() -> None:
    queue = PendingQueue(timeout_s=1000.0, clock=time.monotonic, expired=lambda _owner, _reason: None)
    web, ssh = [Client("web") for _ in range(3)], Client("ssh")
    for client in (*web, ssh):
        queue.add(client)
    assert (queue.of("web"), queue.of("ssh"), queue.of("none"), len(queue)) == (web, [ssh], [], 4)
    queue.discard(web[0])
    queue.discard(ssh)
    queue.discard(ssh)
    assert (queue.of("web"), set(queue.services), len(queue)) == (web[1:], {"web"}, 2)


async def test_another_timeout_counts_for_streams_that_wait_and_is_never_prolonged() -> None:
    now, gone = 0.0, list[StreamOwner]()
    queue = PendingQueue(timeout_s=1000.0, clock=lambda: now, expired=lambda owner, _: gone.append(owner))
    first, second = Client("web"), Client("web")
    queue.set_timeout(100.0)
    queue.add(first)
    queue.set_timeout(1000.0)
    queue.add(second)
    now = 100.0
    queue.set_timeout(50.0)
    await eventually(lambda: gone == [first])
    now = 150.0
    queue.set_timeout(60.0)
    await eventually(lambda: gone == [first, second])


async def test_the_timeout_includes_time_that_the_machine_slept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MOST_S", 0.01)
    slept_s = 0.0
    gone: list[StreamOwner] = []
    queue = PendingQueue(
        timeout_s=1000.0, clock=lambda: time.monotonic() + slept_s, expired=lambda owner, _: gone.append(owner)
    )
    client = Client("web")
    queue.add(client)
    slept_s = 1000.0
    await eventually(lambda: gone == [client])
