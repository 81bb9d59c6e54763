"""Asks an authentication service about requests: one connection for each, as short as its response.

A service may be slow or hostile. What it sends is bounded, and so is the time; while it does not respond, no more than
`MOST` are asked about at a time, others wait, and nobody is let in.
"""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final

from loguru import logger

from goreprox.config.auth import AuthUrl
from goreprox.http.forward_auth import MAX_BODY, Verdict, failure, verdict
from goreprox.http.messages import EndOfMessage, Malformed, Response
from goreprox.http.reply import Reply
from goreprox.net.certificates import reason
from goreprox.net.names import Name
from goreprox.net.outgoing import Connection, UnreachableError, connect
from goreprox.net.trust import Trust

ASK_S: Final = 10.0
"""Timeout of a verdict, with all that comes before it."""
MOST: Final = 128
"""Connections at a time to one service, for which 128 times `MAX_RESPONSE`, 32 MiB, may be held at worst."""
MAX_RESPONSE: Final = 256 * 1024
"""Bytes that are read of a response: a header section and a body of 64 KiB each, and what chunks add."""
_READ: Final = 16 * 1024


class AuthService:
    """One service (forward_auth.Guard)."""

    def __init__(
        self, url: AuthUrl, copied: frozenset[bytes], *, ca: Path | None = None, timeout_s: float = ASK_S
    ) -> None:
        """Ask at `url`; trust certificates signed by those in the file `ca`, by default the system's.

        Raises:
            StartError: the file cannot be used.
        """
        self._url = url
        self.host = url.url.partition("://")[2].partition("/")[0].encode()
        self.path = url.path.encode()
        self.copied = copied
        self._name = Name(url.address)
        self._trust = Trust("auth-ca", ca) if url.tls else None
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(MOST)
        self._tasks: set[asyncio.Task[Verdict]] = set()

    def ask(self, question: bytes, then: Callable[[Verdict], None]) -> Callable[[], object]:
        """Send a question; call `then` with the verdict, unless what this returns was called before."""
        task = asyncio.get_running_loop().create_task(self._ask(question), name=f"ask {self._url.url}")
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._asked, then))
        return task.cancel

    def _asked(self, then: Callable[[Verdict], None], task: asyncio.Task[Verdict]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        if (exc := task.exception()) is not None:
            logger.opt(exception=exc).error("a fault in asking {}", self._url.url)
            then(failure(502, f"could not be asked: {exc!r}"))
        else:
            then(task.result())

    async def reach(self) -> None:
        """Connect as for a question, and disconnect.

        Raises:
            UnreachableError: it cannot be reached.
            TimeoutError: that takes too long.
        """
        async with asyncio.timeout(self._timeout_s):
            _, writer = await self._connect()
        writer.transport.abort()

    async def _ask(self, question: bytes) -> Verdict:
        try:
            async with asyncio.timeout(self._timeout_s), self._places:
                connection = await self._connect()
                try:
                    return await self._converse(connection, question)
                finally:
                    connection[1].transport.abort()
        except TimeoutError:
            return failure(503, f"{self._url.url} gave no verdict within {self._timeout_s:g} s")
        except UnreachableError as exc:
            return failure(503, f"{self._url.url} cannot be reached: {exc}")
        except OSError as exc:
            return failure(503, f"{self._url.url}: {reason(exc)}")
        except Malformed as exc:
            return failure(502, f"{self._url.url} gave no valid response: {exc}")

    async def _connect(self) -> Connection:
        try:
            addresses = self._name.known or await self._name.resolve()
        except (OSError, UnicodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not a valid host name"
            raise UnreachableError(f"the name cannot be resolved: {why}") from exc
        tls, host = None, None
        if self._trust is not None:
            tls, host = self._trust.context, self._url.address.host
        connection, _ = await connect(
            addresses, timeout_s=self._timeout_s, limit=_READ, tls=tls, host=host, resets=True
        )
        return connection

    async def _converse(self, connection: Connection, question: bytes) -> Verdict:
        """Send a question; read the response, of a 2xx its header section alone.

        Raises:
            Malformed: it is none.
            OSError: the connection is lost.
        """
        reader, writer = connection
        writer.write(question)
        reply, left = Reply(to_head=False, may_switch=False), MAX_RESPONSE
        response: Response | None = None
        body = b""
        while not isinstance(event := reply.next_event(), EndOfMessage):
            if isinstance(event, Response):
                response = event
                if not event.interim and event.status not in range(300, 500):
                    break  # its body is for nobody
            elif event:
                body += event
                if len(body) > MAX_BODY:
                    raise Malformed(f"a body of more than {MAX_BODY:,} bytes")
            else:
                data = await reader.read(_READ)
                left -= len(data)
                if left < 0:
                    raise Malformed(f"more than {MAX_RESPONSE:,} bytes")
                reply.receive(data)
                if not data:
                    reply.receive_eof()
        assert response is not None
        return verdict(self, response, body)
