"""How long services are announced that a reload has removed."""

import asyncio

import pytest

from goreprox.config.defaults import MAX_SERVICES_BYTES
from goreprox.roles import former
from goreprox.roles.former import FormerServices
from tests.support.waiting import eventually


async def test_a_removed_service_is_announced_until_no_client_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(former, "LOOK_S", 0.01)
    used, looks = ["web"], 0
    announced: list[list[str]] = []

    def in_use() -> list[str]:
        nonlocal looks
        looks += 1
        return list(used)

    services = FormerServices(["web", "ssh"], in_use)
    services.announce = announced.append
    services.replace(["mail", "ssh"])
    assert announced == [["mail", "ssh", "web"]], "clients of web may be about to be admitted"
    await eventually(lambda: looks > 3)
    assert announced == [["mail", "ssh", "web"]], "a client of web is there, and nothing new is to be told"
    used.clear()
    await eventually(lambda: announced[-1] == ["mail", "ssh"])
    looked = looks
    services.replace(["mail", "ssh"])
    assert announced[2:] == [["mail", "ssh"]]
    assert looks == looked + 1
    assert not [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]


async def test_no_more_is_announced_than_a_peer_may_tell() -> None:
    before = [f"{number:064}" for number in range(MAX_SERVICES_BYTES // 66)]
    after = [f"{number:064}" for number in range(1000, 1000 + MAX_SERVICES_BYTES // 66 - 1)]
    announced: list[list[str]] = []
    services = FormerServices(before, lambda: ())
    services.announce = announced.append
    services.replace(after)
    assert announced == [[*after, before[0]]]
    services.replace(after)
    assert announced[1:] == [after]
