"""All of TCP, through real processes: what one end did, the other end sees."""

import asyncio
import errno
import os
import signal
from pathlib import Path

import pytest

from goreprox.net.sockets import unsent_bytes
from tests.support.processes import Process, Tunnel, nothing_yet, tunnel
from tests.support.sockets import reset_now
from tests.support.traffic import echo, echo_until, read_digest, send_blocks
from tests.support.waiting import DEADLINE_S, eventually


async def test_bytes_arrive_both_ways_on_64_connections_at_once(tmp_path: Path) -> None:
    async with tunnel(tmp_path, echo) as made:

        async def one() -> None:
            reader, writer = await made.connect()
            reading = asyncio.create_task(read_digest(reader))
            sent = await send_blocks(writer, 16)
            writer.write_eof()
            assert await reading == (16 << 16, sent)
            writer.close()

        await asyncio.gather(*(one() for _ in range(64)))


async def test_half_close_of_the_client_leaves_the_other_direction_open(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read()  # to the end of file
        writer.write(b"got " + request)
        await writer.drain()
        writer.write(b" and still here")
        writer.close()

    async with tunnel(tmp_path, handler) as made:
        reader, writer = await made.connect()
        writer.write(b"hello")
        writer.write_eof()
        assert await reader.read() == b"got hello and still here"
        writer.close()


async def test_half_close_of_the_target_leaves_the_other_direction_open(tmp_path: Path) -> None:
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"banner")  # the server speaks first
        writer.write_eof()
        received.set_result(await reader.read())
        writer.close()

    async with tunnel(tmp_path, handler) as made:
        reader, writer = await made.connect()
        assert await reader.read() == b"banner"
        writer.write(b"after the end of file")
        await writer.drain()
        writer.write_eof()
        assert await asyncio.wait_for(received, DEADLINE_S) == b"after the end of file"
        writer.close()


async def test_reset_of_the_client_arrives_as_a_reset_after_its_bytes(tmp_path: Path) -> None:
    outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        data = b""
        try:
            while more := await reader.read(1000):
                data += more
            outcome.set_result(b"end of file")
        except ConnectionResetError:
            outcome.set_result(data)

    async with tunnel(tmp_path, handler) as made:
        _, writer = await made.connect()
        writer.write(b"last words")
        await writer.drain()
        reset_now(writer)
        assert await asyncio.wait_for(outcome, DEADLINE_S) in (b"last words", b"")


async def test_bytes_before_a_reset_arrive_even_if_the_window_was_full(tmp_path: Path) -> None:
    blocks = 8  # of 64 KiB, more than a window is at first
    outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        count = 0
        try:
            while more := await reader.read(1 << 20):
                count += len(more)
            outcome.set_result(-1)
        except ConnectionResetError:
            outcome.set_result(count)

    async with tunnel(tmp_path, handler) as made:
        made.relay.delay_s = 0.1
        _, writer = await made.connect()
        await send_blocks(writer, blocks)
        sock = writer.get_extra_info("socket")
        await eventually(
            lambda: not writer.transport.get_write_buffer_size() and not unsent_bytes(sock), "the kernel has it"
        )
        reset_now(writer)
        assert await asyncio.wait_for(outcome, DEADLINE_S) == blocks << 16


async def test_reset_of_the_target_arrives_as_a_reset_after_its_bytes(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"last words")
        await writer.drain()
        await reader.readexactly(2)
        reset_now(writer)

    async with tunnel(tmp_path, handler) as made:
        reader, writer = await made.connect()
        assert await reader.readexactly(10) == b"last words"
        writer.write(b"go")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE_S)
        writer.close()


async def test_a_refusing_target_resets_the_client_and_the_provider_logs_why(tmp_path: Path) -> None:
    made = Tunnel(tmp_path)
    async with made._stack:
        await made.target(echo)
        await made.serve()
        await made.provide(target=1)
        reader, writer = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE_S)
        writer.close()
        reason = await made.provider.logged("target_failed", target="127.0.0.1:1")
        assert os.strerror(errno.ECONNREFUSED) in reason


async def test_an_early_client_waits_for_a_provider_and_keeps_its_early_bytes(tmp_path: Path) -> None:
    made = Tunnel(tmp_path)
    async with made._stack:
        await made.target(echo)
        await made.serve()
        clients = [await made.connect() for _ in range(20)]
        for index, (_, writer) in enumerate(clients):
            writer.write(f"early {index}".encode())
            writer.write_eof()
        await eventually(lambda: made.server.events("no_provider", service="default"), "clients wait")
        await made.provide()
        for index, (reader, writer) in enumerate(clients):
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == f"early {index}".encode()
            writer.close()


async def test_a_client_without_provider_is_reset_after_the_grace(tmp_path: Path) -> None:
    made = Tunnel(tmp_path)
    async with made._stack:
        await made.serve("--grace", "0.5")
        reader, writer = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE_S)
        writer.close()


async def test_a_stopped_reader_stalls_only_its_own_writer(tmp_path: Path) -> None:
    written = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        if await reader.readexactly(1) == b"b":
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                written += 65536
        else:
            await echo(reader, writer)

    async with tunnel(
        tmp_path,
        handler,
        server=("--memory", "32", "--max-connections", "100"),
        provider=("--memory", "32", "--max-connections", "100"),
    ) as made:
        _, stopped = await made.connect()
        stopped.transport.pause_reading()  # type: ignore[attr-defined]
        stopped.write(b"b")
        before = -1
        while before != written:  # until two looks a second apart find no progress
            before = written
            await asyncio.sleep(1.0)
        assert written < 64 << 20  # windows (32 MiB at most) and socket buffers
        reader, writer = await made.connect()
        writer.write(b"e")
        sent = await asyncio.gather(read_digest(reader, size=64 << 16), send_blocks(writer, 64))
        assert sent[0] == (64 << 16, sent[1])
        reset_now(stopped)
        writer.close()


async def test_beyond_max_connections_clients_wait_in_the_backlog(tmp_path: Path) -> None:
    async with tunnel(tmp_path, echo, server=("--max-connections", "3")) as made:
        clients = [await made.connect() for _ in range(5)]
        for reader, writer in clients[:3]:
            writer.write(b"x")
            assert await asyncio.wait_for(reader.readexactly(1), DEADLINE_S) == b"x"
        assert "3" in await made.server.logged("full")
        for _, writer in clients[:3]:
            writer.close()
        for reader, writer in clients[3:]:
            writer.write(b"y")
            assert await asyncio.wait_for(reader.readexactly(1), DEADLINE_S) == b"y"
            writer.close()


async def test_half_closed_timeout_resets_silent_half_closed_streams(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await asyncio.Event().wait()

    async with tunnel(tmp_path, handler, server=("--half-closed-timeout", "0.5")) as made:
        reader, writer = await made.connect()
        writer.write_eof()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE_S)
        writer.close()


@pytest.mark.parametrize("which", ["server", "provider"])
async def test_a_draining_process_lets_streams_end_then_exits_cleanly(tmp_path: Path, which: str) -> None:
    async with tunnel(tmp_path, echo) as made:
        reader, writer = await made.connect()
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        process = made.server if which == "server" else made.provider
        process.signal(signal.SIGTERM)
        await process.logged("draining")
        writer.write(b"2")
        assert await reader.readexactly(1) == b"2"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        assert await process.wait() == 0


@pytest.mark.parametrize("which", ["server", "provider"])
async def test_streams_left_after_the_drain_are_reset(tmp_path: Path, which: str) -> None:
    target_saw: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with tunnel(tmp_path, echo_until(target_saw), **{which: ("--drain", "0.3")}) as made:
        reader, writer = await made.connect()
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        process = made.server if which == "server" else made.provider
        process.signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE_S)
        assert await asyncio.wait_for(target_saw, DEADLINE_S) == "reset"
        assert await process.wait() == 0
        writer.close()


async def test_a_waiting_client_that_half_closed_does_not_delay_the_shutdown(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        await made.serve("--drain", "600")
        finished, waiting = [await made.connect() for _ in range(2)]
        for _, writer in (finished, waiting):
            writer.write(b"1")
        await eventually(lambda: made.server.events("no_provider", service="default"), "both wait")
        finished[1].write_eof()
        made.server.signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(finished[0].read(), DEADLINE_S)
        assert made.server.process.returncode is None, "the other one may still be served"
        waiting[1].write_eof()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(waiting[0].read(), DEADLINE_S)
        assert await made.server.wait() == 0


@pytest.mark.parametrize("which", ["server", "provider"])
async def test_the_shutdown_log_counts_open_and_reset_connections(tmp_path: Path, which: str) -> None:
    async with tunnel(tmp_path, echo) as made:
        process = made.server if which == "server" else made.provider
        clients = [await made.connect() for _ in range(3)]
        for reader, writer in clients:
            writer.write(b"1")
            assert await reader.readexactly(1) == b"1"
        process.signal(signal.SIGINT)
        await eventually(lambda: ("draining", 3) in events(process, "connections"), "drain begins")
        reader, writer = clients[0]
        writer.write_eof()
        assert await reader.read() == b""
        await eventually(lambda: process.events("stream_ended", reason="done"), "one has ended")
        process.signal(signal.SIGINT)
        assert await process.wait() == 0
        assert ("drained", 2) in events(process, "reset")


def events(process: Process, field: str) -> list[tuple[object, object]]:
    """Give the events of a log that have a field, and the field."""
    return [(entry.get("event"), entry[field]) for entry in process.log if field in entry]


@pytest.mark.parametrize("which", ["server", "provider"])
async def test_sighup_ends_nothing(tmp_path: Path, which: str) -> None:
    async with tunnel(tmp_path, echo) as made:
        process = made.server if which == "server" else made.provider
        reader, writer = await made.connect()
        process.signal(signal.SIGHUP)
        await process.logged("reloaded", applied=0)
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        writer.close()


async def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    async with tunnel(tmp_path, echo) as made:
        reader, writer = await made.connect()
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        made.server.signal(signal.SIGTERM)
        await made.server.logged("draining")
        made.server.signal(signal.SIGTERM)
        await made.server.wait()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE_S)
        writer.close()


@pytest.mark.parametrize("which", ["server", "provider"])
async def test_a_killed_process_resets_its_sockets_and_its_successor_resets_the_peers_at_once(
    tmp_path: Path, which: str
) -> None:
    target_saw: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with tunnel(tmp_path, echo_until(target_saw)) as made:
        reader, writer = await made.connect()
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        killed = made.server if which == "server" else made.provider
        killed.signal(signal.SIGKILL)
        if which == "provider":
            assert await asyncio.wait_for(target_saw, DEADLINE_S) == "reset"
            await made.provide()
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), DEADLINE_S)
        else:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), DEADLINE_S)
            await killed.wait()
            await made.serve(providers=made.relay.target)
            assert await asyncio.wait_for(target_saw, DEADLINE_S) == "reset"
        await (made.provider if which == "server" else made.server).logged("stream_ended", code="peer_died")
        writer.close()


async def test_two_providers_share_new_streams_and_a_lost_one_loses_only_its_own(tmp_path: Path) -> None:
    async with tunnel(tmp_path, echo) as made:
        first = made.provider
        second = await made.provide()
        clients = [await made.connect() for _ in range(20)]
        for reader, writer in clients:
            writer.write(b"x")
            assert await asyncio.wait_for(reader.readexactly(1), DEADLINE_S) == b"x"
        first.signal(signal.SIGTERM)
        await eventually(lambda: made.server.events("peer_draining"), "drain")
        for _ in range(10):
            reader, writer = await made.connect()
            writer.write(b"y")
            assert await asyncio.wait_for(reader.readexactly(1), DEADLINE_S) == b"y"
            writer.close()
        second.signal(signal.SIGKILL)
        reads = [asyncio.create_task(reader.readexactly(1)) for reader, _ in clients]
        for _, writer in clients:
            writer.write(b"z")
        await eventually(lambda: sum(task.done() for task in reads) >= 10, "the other provider's go on")
        assert sum(task.done() for task in reads) == 10
        for task in reads:
            task.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
