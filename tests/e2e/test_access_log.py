"""The access log of tcp:// and tls:// ports, of real processes."""

import asyncio
from pathlib import Path

from tests.support.events import Entry, matching
from tests.support.processes import Tunnel, nothing_yet, tunnel
from tests.support.sockets import HOST, reset_now
from tests.support.tls import Authority
from tests.support.traffic import echo
from tests.support.waiting import eventually


async def lines(made: Tunnel, count: int) -> list[Entry]:
    """Return the lines of the access log once there are so many."""
    await eventually(lambda: made.server.events("access_tcp") >= count, f"{count} lines")
    return matching(made.server.log, "access_tcp")


async def test_each_connection_has_one_line_at_its_end(tmp_path: Path) -> None:
    async with tunnel(tmp_path, echo, provider=("--name", "back")) as made:
        reader, writer = await made.connect()
        writer.write(b"12345")
        assert await reader.readexactly(5) == b"12345"
        made.relay.cut()
        writer.write_eof()
        assert await reader.read() == b""
        (done,) = await lines(made, 1)
        assert done["client"] == "{}:{}".format(*writer.get_extra_info("sockname"))
        assert (done["service"], done["provider"], done["level"]) == ("default", "back", "info")
        assert (done["bytes"], done["bytes_in"], done["outages"]) == (5, 5, 1)
        assert (done["code"], done["reason"]) == ("done", "done")
        assert isinstance(done["duration_s"], float) and done["duration_s"] > 0
        reader, writer = await made.connect()
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        reset_now(writer)
        _, reset = await lines(made, 2)
        assert (reset["code"], reset["reason"], reset["outages"]) == ("client_reset", "Connection reset by peer", 0)


async def test_a_tls_connection_has_the_name_in_its_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with nothing_yet(tmp_path) as made:
        made.scheme = "tls"
        await made.target(echo)
        await made.serve(*authority.options, "--tls-client-ca", str(authority.ca_file))
        await made.provide()
        context = authority.trusting(name="alice")
        reader, writer = await asyncio.open_connection(HOST, made.port, ssl=context, server_hostname=HOST)
        writer.write(b"12345")
        assert await reader.readexactly(5) == b"12345"
        writer.close()
        (line,) = await lines(made, 1)
        assert (line["certificate"], line["bytes"], line["bytes_in"]) == ("alice", 5, 5)


async def test_the_log_can_be_switched_off(tmp_path: Path) -> None:
    async with tunnel(tmp_path, echo, server=("--no-access-log",)) as made:
        reader, writer = await made.connect()
        writer.write_eof()
        assert await reader.read() == b""
        await made.server.logged("stream_ended")
        assert not made.server.events("access_tcp")


async def test_connections_that_reach_no_provider_have_few_lines(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        await made.serve("--grace", "0.1")
        for _ in range(100):
            reader, _ = await made.connect()
            try:
                await reader.read()
            except ConnectionResetError:
                continue
        await eventually(lambda: made.server.events("stream_ended", code="no_provider") == 100)
        logged = matching(made.server.log, "access_tcp")
        assert 0 < len(logged) <= 2 * 61, "60 in a minute, and perhaps another one began"
        assert {line.get("code", "no_provider") for line in logged} == {"no_provider"}
