"""A TCP relay between processes, or parts of one, that breaks the link in every way a network can."""

import asyncio
import contextlib
from collections.abc import Coroutine

from tests.support.sockets import HOST, abort, reset_now, stop_accepting


class Relay:
    """A TCP relay to `port` that can fail: cut with RST or FIN, be silent, refuse, slow down, be late."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.refusing = False
        self.silent = False
        self.half_open = False
        """Whether one side does not notice that the other has closed its connection."""
        self.bytes_per_s: float | None = None
        self.delay_s = 0.0
        """What is passed on waits for so long, and at most twice as long."""
        self.connections = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, port or self.port, limit=1 << 18)
        self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self._writers.append(writer)
        self._go_on(self._carry(reader, writer))

    def _go_on(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name="relay")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(HOST, self.target, limit=1 << 18)
        except OSError:
            abort(writer)
            return
        self.connections += 1
        self._writers.append(up_writer)
        self._go_on(self._copy(reader, up_writer))
        self._go_on(self._copy(up_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096 if self.bytes_per_s else 1 << 18):
                if self.silent:
                    await self._flowing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                writer.write(data)
                await writer.drain()
        if not self.half_open:
            writer.close()

    def cut(self, *, fin: bool = False) -> None:
        """End all connections, with RST or with FIN. What was silent is lost."""
        self._writers = [writer for writer in self._writers if writer.get_extra_info("socket").fileno() >= 0]
        for writer in self._writers:
            if fin:
                writer.close()
            else:
                reset_now(writer)

    def silence(self) -> None:
        """Hold the sockets and pass nothing on."""
        self.silent = True
        self._flowing.clear()

    def unsilence(self) -> None:
        """Pass on what was held back."""
        self.silent = False
        self._flowing.set()

    def resume(self) -> None:
        self.refusing = False
        self.unsilence()

    async def stop(self) -> None:
        self.resume()
        if self._server is not None:
            await stop_accepting(self._server)
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
