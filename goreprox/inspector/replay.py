"""Sends a kept request once more: through the edge itself, as the client that sent it, and marked."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from loguru import logger

from goreprox.errors import ControlError
from goreprox.http import requests, writer
from goreprox.http.exchange import Origin
from goreprox.inspector.records import Record, Records
from goreprox.inspector.shown import not_replayable
from goreprox.net import sockets
from goreprox.protocol.limits import KIB

REPLAY_S: Final = 30.0
"""How long the response may take; then the request is ended, as if its client had left."""
MOST: Final = 8
"""At a time."""
_READ_BYTES: Final = 64 * KIB
_LEFT_OUT: Final = (b"expect", b"connection")

Connect = Callable[[socket.socket, Origin], None]
"""Serves a client, at the other end of a socket, who comes from there; raises ControlError if there is no room."""


class Replays:
    """Those of a process."""

    def __init__(self, records: Records, connect: Connect) -> None:
        self._records = records
        self._connect = connect
        self._running = 0

    async def run(self, record: Record) -> Record | None:
        """Send a request once more, and wait for the response; return what is kept of it, None if it is not kept.

        The target is told so (`Goreprox-Replay`). It is the same request: what its credentials are not valid for any
        more, it does not get.

        Raises:
            ControlError: it cannot be sent; the message says why.
        """
        request_id = self._records.ids.id_of(record.number)
        if (reason := not_replayable(record)) is not None:
            raise ControlError(f"request {request_id} cannot be sent once more: {reason}")
        if self._running >= MOST:
            raise ControlError(f"{MOST} requests are being sent once more; try again when one of them is over")
        origin = record.origin
        forwarding = replace(origin.site.forwarding, replay=request_id.encode())
        site = replace(origin.site, forwarding=forwarding)
        logger.bind(event="replay", request=request_id).info("sending request {} once more, on request", request_id)
        ours, theirs = socket.socketpair()
        with ours:
            sockets.prepare(theirs)
            try:
                self._connect(theirs, origin._replace(site=site))
            except ControlError:
                theirs.close()
                raise
            self._running += 1
            try:
                with contextlib.suppress(TimeoutError, OSError):  # then the record says what has become of it
                    async with asyncio.timeout(REPLAY_S):
                        await _talk(ours, request_bytes(record))
            finally:
                self._running -= 1
        replayed = self._records.made_for(site)
        if replayed is not None:  # it can be sent again itself, after a reload, too
            replayed.origin = record.origin
        return replayed


def request_bytes(record: Record) -> bytes:
    """Return a request as its client sent it, but on a connection of its own."""
    request, body = record.request, record.request_body
    fields = [(name, value) for name, value in requests.end_to_end(request) if name.lower() not in _LEFT_OUT]
    if request.chunked:
        fields.append((b"Transfer-Encoding", b"chunked"))
        body = (writer.chunk(body) if body else b"") + writer.last_chunk(record.request_trailers)
    return writer.plain_head(request, [*fields, writer.CLOSE]) + body


async def _talk(sock: socket.socket, data: bytes) -> None:
    """Send a request, and read to the end; what is read is kept elsewhere."""
    reader, stream = await asyncio.open_connection(sock=sock)
    try:
        stream.write(data)
        while await reader.read(_READ_BYTES):
            pass
    finally:
        stream.transport.abort()
