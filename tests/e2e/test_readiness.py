"""When a process says that it is ready: once it is of use to anybody."""

from pathlib import Path

import pytest

from tests.support.processes import nothing_yet
from tests.support.sockets import HOST, closed_port
from tests.support.traffic import echo
from tests.support.waiting import eventually


@pytest.mark.parametrize("role", ["provider", "edge"])
async def test_a_process_retries_until_its_broker_is_up_and_is_ready_only_then(tmp_path: Path, role: str) -> None:
    async with nothing_yet(tmp_path) as made:
        await made.target(echo)
        with closed_port() as port:
            where = f"{HOST}:{port}"
            command = {
                "provider": ("provider", f"{HOST}:{made.target_port}", "--server", where),
                "edge": ("edge", "--listen", f"{HOST}:0", "--broker", where),
            }[role]
            process = await made.start(*command)
            await eventually(lambda: process.events("link_down", cause="unreached"), "it says why")
            assert not process.events("ready")
            ports = {"provider": "--providers", "edge": "--edges"}
            other = {"provider": "--edges", "edge": "--providers"}[role]
            await made.start("broker", ports[role], where, other, f"{HOST}:0")
            await eventually(lambda: process.events("ready"), "it is ready")
            order = [entry.get("event") for entry in process.log]
            assert order.index("starting") < order.index("link_up") < order.index("ready")
