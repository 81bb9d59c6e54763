"""What the dashboard asks processes about requests, and makes of their replies."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from goreprox.control.message import Request as Ask
from goreprox.control.socket import Commands, ControlSocket, Pages
from goreprox.errors import ControlError
from goreprox.monitor.requests import Requests
from goreprox.status.requests import curl

MESSAGE = {"fields": [["Host", "a"]], "trailers": [], "body": {"bytes": 0, "text": ""}}


class Role:
    """A process that keeps two requests, in two pages."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.after: object = None

    async def requests(self, ask: Ask) -> Pages:
        self.after = ask.options["after"]
        for number in (1, 2):
            id_ = f"{self.mark}-{number}"
            yield {"inspecting": True, "after": id_, "oldest": f"{self.mark}-1", "requests": [{"id": id_}]}

    async def request(self, ask: Ask) -> object:
        row = {"id": ask.options["id"], "scheme": "http", "host": "a", "path": "/", "method": "GET", "request": MESSAGE}
        return row if str(ask.options["id"]).startswith(self.mark) else None

    async def replay(self, ask: Ask) -> object:
        if ask.options["id"] == f"{self.mark}-2":
            raise ControlError("it cannot be sent once more")
        return {"id": f"{self.mark}-3"} if ask.options["id"] == f"{self.mark}-1" else None

    async def open(self, path: Path) -> ControlSocket:
        commands: Commands = {"requests": self.requests, "request": self.request, "replay": self.replay}
        return await ControlSocket.open(path, commands)


@pytest.fixture
async def roles(tmp_path: Path) -> AsyncIterator[list[Role]]:
    """A server, a worker of an edge, and a provider, which is not asked."""
    made = [Role("aaaaaa"), Role("bbbbbb"), Role("cccccc")]
    names = ("server-t.0", "edge-t.0", "provider-t.0")
    sockets = [await role.open(tmp_path / name) for role, name in zip(made, names, strict=True)]
    yield made
    for each in sockets:
        each.close()


async def test_pages_of_all_servers_and_edges_are_joined(tmp_path: Path, roles: list[Role]) -> None:
    found: Any = await Requests(tmp_path).list(["aaaaaa-1", "bbbbbb-2"])
    assert found["problems"] == []
    assert {each["who"]: each["after"] for each in found["processes"]} == {
        "server-t.0": "aaaaaa-2",
        "edge-t.0": "bbbbbb-2",
    }
    assert [len(each["requests"]) for each in found["processes"]] == [2, 2]
    assert [role.after for role in roles] == [["aaaaaa-1", "bbbbbb-2"]] * 2 + [None]


async def test_one_process_has_a_request_and_sends_it_once_more(tmp_path: Path, roles: list[Role]) -> None:
    asking = Requests(tmp_path)
    found: Any = await asking.detail("bbbbbb-1")
    assert found["curl"] == curl(found) == "curl --globoff --path-as-is http://a/"
    assert await asking.detail("dddddd-1") is None
    assert await asking.replay("bbbbbb-1") == {"id": "bbbbbb-3"}
    with pytest.raises(ControlError, match=r"edge-t\.0: it cannot be sent once more"):
        await asking.replay("bbbbbb-2")
    with pytest.raises(ControlError, match="is not kept any more"):
        await asking.replay("dddddd-1")


async def test_without_processes_the_list_says_so(tmp_path: Path) -> None:
    found: Any = await Requests(tmp_path).list([])
    assert found["processes"] == [] and "runs in" in found["problems"][0]
    with pytest.raises(ControlError, match="runs in"):
        await Requests(tmp_path).detail("aaaaaa-1")
