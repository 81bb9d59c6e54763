"""What people are told of a tunnel that works, that loops, that is shared by mistake, and that ends."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.support.processes import WAIT_S, Process, nothing_yet, tunnel
from tests.support.sockets import HOST
from tests.support.traffic import echo
from tests.support.waiting import eventually


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_a_target_that_is_the_servers_own_port_is_refused_without_a_loop(tmp_path: Path, scheme: str) -> None:
    async with nothing_yet(tmp_path) as made:
        made.scheme = scheme
        await made.serve()
        provider = await made.provide(target=made.port)
        reader, writer = await made.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n")
        try:
            response = await asyncio.wait_for(reader.read(), WAIT_S)
        except ConnectionResetError:
            response = b""
        assert scheme == "tcp" or response.startswith(b"HTTP/1.1 502 ")
        await eventually(lambda: provider.events("loop"), "the provider says so")
        provider.signal(signal.SIGTERM)
        assert await provider.wait() == 0
        assert provider.events("stream_ended") < 20, "a few hops, not all the connections there are"


async def test_providers_that_share_a_service_with_different_targets_are_reported_by_all_three_processes(
    tmp_path: Path,
) -> None:
    async with tunnel(tmp_path, echo) as made:
        first = made.provider
        again = await made.provide()
        await eventually(lambda: again.events("serving"), "its time to look has come")
        everybody = made.server, first, again
        assert not any(each.events("shared_service") for each in everybody), "replicas are no mistake"
        other = await made.provide(target=1)
        for process in (*everybody, other):
            await eventually(lambda p=process: p.events("shared_service", service="default"), "all say so")  # type: ignore[misc]


async def test_a_provider_logs_the_addresses_at_which_clients_reach_its_services(tmp_path: Path) -> None:
    async with tunnel(tmp_path, echo) as made:
        url = f"tcp://{HOST}:{made.port}"
        said = {"level": "info", "service": "default", "at": url}
        await eventually(lambda: made.provider.events("serving", **said), "it says where")


def warnings(process: Process) -> list[object]:
    return [entry["message"] for entry in process.log if entry.get("level") in ("warning", "error")]


@pytest.mark.parametrize("ends", ["server", "provider"])
async def test_a_clean_shutdown_is_one_line_without_a_warning_at_the_peer(tmp_path: Path, ends: str) -> None:
    async with tunnel(tmp_path, echo) as made:
        ending, other = (made.server, made.provider) if ends == "server" else (made.provider, made.server)
        await other.logged("ready")  # it may meet its peer before that
        before = len(warnings(other))
        seen = len(other.log)
        ending.signal(signal.SIGTERM)
        assert await ending.wait() == 0
        await eventually(lambda: other.events("peer_left"), "it is told")
        if ends == "server":
            await eventually(lambda: other.events("link_lost"), "the link is gone, too")
        lines = [entry for entry in other.log[seen:] if entry.get("level") == "info"]
        assert [entry.get("event") for entry in lines] == ["peer_left"]
        assert ends in str(lines[0]["message"])
        told = [entry for entry in other.log[seen:] if entry.get("event") == "link_lost"]
        assert all(entry["level"] == "debug" for entry in told)
        assert len(warnings(other)) == before + len([e for e in other.log if e.get("event") == "link_down"])


async def test_a_service_without_providers_is_reported_before_a_client_connects(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        await made.target(echo)
        await made.serve("--listen", f"{HOST}:0=nope")
        await made.provide()
        await eventually(lambda: made.server.events("unknown_service", service="nope"), "it is said")
