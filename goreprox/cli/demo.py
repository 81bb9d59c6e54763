"""The command `demo`: a download that survives the loss of its link, again and again.

Server, provider and target are processes of their own; a relay between the first two cuts their link.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from goreprox.cli.options import FileOptions
from goreprox.config.defaults import MIB
from goreprox.config.options import Count, Mebibytes
from goreprox.errors import ConfigError, StartError

HOST = "127.0.0.1"
START_S = 15.0
STALL_S = 30.0
OUTAGE_S = 1.0
_ABORT = struct.pack("ii", 1, 0)
PAGE = b"<!doctype html><title>goreprox</title><h1>It works</h1><p>This page came through the tunnel.</p>"


def demo(
    *,
    size: Mebibytes = 256 * MIB,
    cuts: Count = 5,
    keep: bool = False,
    file: FileOptions | None = None,  # noqa: ARG001 - `Sources.read_file` has used it
) -> None:
    """Run the demonstration.

    Parameters
    ----------
    size
        Download so much.
    cuts
        Cut the link so often.
    keep
        Keep it running afterwards, until Ctrl-C.
    """
    if not MIB <= size <= 65_536 * MIB:
        raise ConfigError(f"size {size / MIB:g}: expected 1 to 65536 MiB")
    if not 0 <= cuts <= 1000:
        raise ConfigError(f"cuts {cuts}: expected 0 to 1000")
    asyncio.run(run(keep=keep, size_bytes=size, cuts=cuts))


def _content(size: int) -> Iterator[bytes]:
    """Yield the same pseudo-random bytes in every process, 1 MiB at a time."""
    for index in range(0, size, MIB):
        yield hashlib.shake_128(b"goreprox demo %d" % index).digest(min(MIB, size - index))


async def target() -> None:
    """Serve a page, and SIZE bytes at `/SIZE`. Log the port as a role does; run until standard input is closed."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ")[1][1:]
            size = int(path) if path.isdigit() else len(PAGE)
            kind = b"application/octet-stream" if path.isdigit() else b"text/html"
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (kind, size)
            )
            for block in _content(size) if path.isdigit() else [PAGE]:
                writer.write(block)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, HOST, 0)
    ready = {"event": "ready", "port": server.sockets[0].getsockname()[1]}
    print(json.dumps(ready), file=sys.stderr, flush=True)  # noqa: T201 -- read by the parent
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


class _Link:
    """The link between provider and server: a relay that can be cut."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.cut_now = False
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut_now:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, up_writer), (up_reader, writer)):
            self._writers.add(sink)
            task = asyncio.create_task(self._copy(source, sink), name="demo link")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(MIB):
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()

    async def outage(self) -> None:
        """Reset the link, and refuse connections for `OUTAGE_S`."""
        self.cut_now = True
        for writer in list(self._writers):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            writer.transport.abort()
        await asyncio.sleep(OUTAGE_S)
        self.cut_now = False


@contextlib.asynccontextmanager
async def _process(*args: str, stdin: int = asyncio.subprocess.DEVNULL) -> AsyncIterator[asyncio.subprocess.Process]:
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *args,
            env={name: value for name, value in os.environ.items() if not name.startswith("GOREPROX_")},
            stdin=stdin,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as exc:
        raise StartError(f"the demo cannot start a process: {exc.strerror}") from exc
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def _ready(process: asyncio.subprocess.Process, what: str) -> dict[str, object]:
    """Return the fields of the log line `ready` of a process.

    Raises:
        StartError: it ended, or was not ready in time, for the reason that its last line names.
    """
    assert process.stderr is not None
    last = "its log is empty"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            async for line in process.stderr:
                last = line.decode().strip() or last
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if isinstance(entry, dict):
                        if entry.get("event") == "ready":
                            return entry
                        last = str(entry.get("message", last))
            await process.wait()  # one that was killed as it ended would be reported as unknown
    raise StartError(f"the demo cannot start its {what}: {last.removeprefix('goreprox: ')}")


def _port(ready: dict[str, object], kind: str) -> int:
    """Return the first port of a kind in the fields of `ready`."""
    found = ready[kind]
    port = found[0] if isinstance(found, list) else found
    assert isinstance(port, int)
    return port


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    while await process.stderr.read(4096):
        pass


async def _fetch(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(STALL_S):
            reader, writer = await asyncio.open_connection(HOST, port, limit=MIB)
            writer.write(f"GET /{path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
    except (OSError, EOFError) as exc:  # TimeoutError is an OSError
        raise StartError(
            f"the demo got no response through the tunnel: {str(exc) or f'it took {STALL_S:g} s'}"
        ) from exc
    if not head.startswith(b"HTTP/1.1 200"):
        raise StartError(f"the demo got an unexpected response through the tunnel: {head[:40]!r}")
    return reader, writer


async def run(*, keep: bool, size_bytes: int, cuts: int) -> None:
    """Run the processes, and download through them.

    Raises:
        StartError: a process could not be started, or the download is not what the target sent.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    async with contextlib.AsyncExitStack() as stack:
        tmp = stack.enter_context(tempfile.TemporaryDirectory(prefix="goreprox-demo-"))
        code = "import asyncio; from goreprox.cli.demo import target; asyncio.run(target())"
        target_process = await stack.enter_async_context(_process("-c", code, stdin=asyncio.subprocess.PIPE))
        target_port = _port(await _ready(target_process, "target"), "port")
        common = ["--insecure", "--log-json", "--runtime-dir", str(Path(tmp) / "run"), "--config", os.devnull]
        command = ["-m", "goreprox"]
        server = await stack.enter_async_context(
            _process(*command, "server", "--listen", f"{HOST}:0", "--providers", f"{HOST}:0", *common)
        )
        ready = await _ready(server, "server")
        port = _port(ready, "clients")
        link = _Link(_port(ready, "providers"))
        await link.start()
        provider = await stack.enter_async_context(
            _process(*command, "provider", f"{HOST}:{target_port}", "--server", f"{HOST}:{link.port}", *common)
        )
        await _ready(provider, "provider")
        for process in (server, provider):
            drain = asyncio.create_task(_drain(process), name="demo log")
            stack.callback(drain.cancel)
        console.print(f"server (pid {server.pid}) and provider (pid {provider.pid}) are up: http://{HOST}:{port}/")
        reader, writer = await _fetch(port, "")
        page = await reader.read()
        writer.close()
        console.print(f"fetched the page through the tunnel: {len(page)} bytes")
        await _download(console, link, port, size_bytes, cuts)
        if keep:
            stop = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            console.print(f"left running: http://{HOST}:{port}/ (Ctrl-C ends it)")
            await stop.wait()


async def _download(console: Console, link: _Link, port: int, size: int, cuts: int) -> None:
    expected = hashlib.sha256()
    for block in _content(size):
        expected.update(block)
    digest = hashlib.sha256()
    done, made, longest_s = 0, 0, 0.0
    outages: list[asyncio.Task[None]] = []
    reader, writer = await _fetch(port, str(size))
    bar = Progress(
        TextColumn("download"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[cuts]}"),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("download", total=size, cuts="")
        last = time.monotonic()
        while done < size:
            try:
                async with asyncio.timeout(STALL_S):
                    data = await reader.read(MIB)
            except TimeoutError as exc:
                raise StartError(f"the download stalled for {STALL_S:g} s at byte {done}") from exc
            if not data:
                raise StartError(f"the download ended at byte {done} of {size}")
            digest.update(data)
            done += len(data)
            now = time.monotonic()
            longest_s, last = max(longest_s, now - last), now
            if made < cuts and done * (cuts + 1) > size * (made + 1):
                made += 1
                outages.append(asyncio.create_task(link.outage(), name="demo outage"))
                bar.update(task, cuts=("x " if console.options.ascii_only else "✂ ") * made)
                if not console.is_terminal:
                    console.print(f"{done // MIB} of {size / MIB:g} MiB: the link is cut for {OUTAGE_S:g} s")
            bar.update(task, completed=done)
    writer.close()
    await asyncio.gather(*outages)
    if digest.digest() != expected.digest():
        raise StartError("the download is not what the target sent: please report this")
    times = "1 time" if made == 1 else f"{made} times"
    console.print(
        f"survived: {size / MIB:g} MiB over one connection, link cut {times}, longest stall {longest_s:.1f} s; "
        f"SHA-256 equal ({digest.hexdigest()[:16]}...)"
    )
