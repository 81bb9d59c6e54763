"""Connections outlive the tunnel: transfers and idle connections through every kind of break."""

import asyncio
import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.processes import FULL_LOAD, tunnel
from tests.support.relay import Relay
from tests.support.traffic import echo, echo_until, read_digest, send_blocks
from tests.support.waiting import DEADLINE_S, eventually

BLOCKS = 16384 if FULL_LOAD else 4096
"""Of 64 KiB, each way: a gibibyte, or a quarter of one."""
RESET_WITHIN_S = 15
"""After the grace; what is promised, not what a machine is given."""


async def both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """`d` and a count: send so many blocks. `u`: read to the end of file and respond with the digest. Else echo."""
    kind = await reader.readexactly(1)
    if kind == b"d":
        await send_blocks(writer, int.from_bytes(await reader.readexactly(4), "big"))
    elif kind == b"u":
        size, digest = await read_digest(reader)
        writer.write(f"{size} {digest}".encode())
    else:
        await echo(reader, writer)
    writer.close()


async def download(made: object, count: int) -> None:
    reader, writer = await made.connect()  # type: ignore[attr-defined]
    writer.write(b"d" + count.to_bytes(4, "big"))
    digest = await digest_of(count)
    assert await read_digest(reader) == (count << 16, digest)
    writer.close()


async def upload(made: object, count: int) -> None:
    reader, writer = await made.connect()  # type: ignore[attr-defined]
    writer.write(b"u")
    digest = await send_blocks(writer, count)
    writer.write_eof()
    assert (await reader.read()).decode() == f"{count << 16} {digest}"
    writer.close()


class _Null:
    def write(self, _: bytes) -> None:
        """Take and forget."""

    async def drain(self) -> None:
        """Be ready."""


async def digest_of(count: int) -> str:
    return await send_blocks(_Null(), count)  # type: ignore[arg-type]


async def disturb(relay: Relay, rng: random.Random, *, faults: int, busy: asyncio.Future[tuple[None, None]]) -> int:
    """Break the link again and again, each time once it has come back, until `faults` are done or nothing runs."""
    done = 0
    while done < faults and not busy.done():
        before = relay.connections
        kind = rng.choice(["reset", "fin", "refuse", "silent"])
        if kind == "silent":
            relay.silence()
            await asyncio.sleep(rng.uniform(0.05, 0.5))
            if rng.random() < 0.5:
                relay.cut()
            else:
                before -= 1
            relay.resume()
        elif kind == "refuse":
            relay.refusing = True
            relay.cut()
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            relay.resume()
        else:
            relay.cut(fin=kind == "fin")
        done += 1
        await eventually(lambda least=before: relay.connections > least or busy.done(), "the link is back")  # type: ignore[misc]
        await asyncio.sleep(rng.uniform(0.02, 0.2))
    return done


@pytest.mark.long
async def test_large_transfers_each_way_and_200_idle_connections_survive_50_faults(tmp_path: Path) -> None:
    async with tunnel(tmp_path, both_ways) as made:
        idle = [await made.connect() for _ in range(200)]
        for _, writer in idle:
            writer.write(b"e1")
        for reader, _ in idle:
            assert await asyncio.wait_for(reader.readexactly(1), DEADLINE_S) == b"1"
        rng = random.Random(20261123)
        total = 0
        transfers = asyncio.gather(download(made, BLOCKS), upload(made, BLOCKS))
        total += await disturb(made.relay, rng, faults=50, busy=transfers)
        await transfers
        while total < 50:  # a fast machine is done early: go on with smaller ones
            transfers = asyncio.gather(download(made, BLOCKS // 8), upload(made, BLOCKS // 8))
            total += await disturb(made.relay, rng, faults=50 - total, busy=transfers)
            await transfers
        for reader, writer in idle:
            writer.write(b"2")
            assert await asyncio.wait_for(reader.readexactly(1), DEADLINE_S) == b"2"
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
            writer.close()


async def test_a_silent_link_is_detected_and_replaced(tmp_path: Path) -> None:
    timeout = ("--link-timeout", "1.5")
    async with tunnel(tmp_path, echo, server=timeout, provider=timeout) as made:
        reader, writer = await made.connect()
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        made.relay.silence()
        writer.write(b"2")
        await eventually(lambda: made.provider.events("link_lost"), "silence is noticed")
        await eventually(lambda: made.server.events("peer_down"), "silence is noticed")
        made.relay.cut()
        made.relay.resume()
        assert await asyncio.wait_for(reader.readexactly(1), DEADLINE_S) == b"2"
        writer.close()


@pytest.mark.long
async def test_an_outage_of_a_full_minute_is_survived(tmp_path: Path) -> None:
    async with tunnel(tmp_path, both_ways) as made:
        reader, writer = await made.connect()
        writer.write(b"e1")
        assert await reader.readexactly(1) == b"1"
        transfers = asyncio.gather(download(made, 4096), upload(made, 4096))
        made.relay.refusing = True
        made.relay.cut()
        began = time.monotonic()
        writer.write(b"2")
        await asyncio.sleep(60.0)  # the subject of this test
        made.relay.resume()
        assert await asyncio.wait_for(reader.readexactly(1), DEADLINE_S) == b"2"
        assert time.monotonic() - began >= 60.0
        await transfers
        writer.close()


async def test_an_outage_longer_than_the_grace_resets_both_sides(tmp_path: Path) -> None:
    target_saw: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    # the server would wait for an hour: the smaller grace counts on both ends
    async with tunnel(tmp_path, echo_until(target_saw), server=("--grace", "3600"), provider=("--grace", "1")) as made:
        reader, writer = await made.connect()
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        made.relay.refusing = True
        made.relay.cut()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 1 + RESET_WITHIN_S)
        assert await asyncio.wait_for(target_saw, 1 + RESET_WITHIN_S) == "reset"
        for process in (made.server, made.provider):
            await process.logged("stream_ended", code="peer_lost")
        writer.close()


@pytest.mark.parametrize("unheard", ["a second signal", "no link"])
async def test_a_restarted_process_ends_streams_of_its_predecessor_whose_goodbye_was_lost(
    tmp_path: Path, unheard: str
) -> None:
    grace = ("--grace", "3600")
    async with tunnel(tmp_path, echo, server=grace, provider=(*grace, "--drain", "1")) as made:
        reader, writer = await made.connect()
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        ends = made.provider
        if unheard == "no link":
            made.relay.refusing = True
            made.relay.cut()
            await eventually(lambda: ends.events("link_lost"), "it has nobody to tell")
        ends.signal(signal.SIGTERM)
        if unheard == "a second signal":
            await ends.logged("draining")
            ends.signal(signal.SIGTERM)
        assert await ends.wait() == 0
        made.relay.resume()
        await made.provide(*grace)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE_S)


async def test_a_1_mbit_link_carries_bulk_and_interactive_traffic_without_reconnecting(tmp_path: Path) -> None:
    async with tunnel(tmp_path, both_ways) as made:
        made.relay.bytes_per_s = 125_000
        connections = made.relay.connections
        bulk = asyncio.create_task(download(made, 24))  # 1.5 MiB: 12 s
        reader, writer = await made.connect()
        writer.write(b"e")
        rounds = 0
        while not bulk.done():
            writer.write(b"x")
            assert await asyncio.wait_for(reader.readexactly(1), DEADLINE_S) == b"x"
            rounds += 1
        await bulk
        assert rounds >= 3
        assert made.relay.connections == connections
        writer.close()
