"""What the target's socket sees of how an HTTP client's socket ended, by real sockets in one process."""

import asyncio

import pytest

from goreprox.config import Listener
from tests.helpers import HOST
from tests.integration.test_tunnel import Tunnel

HTTP = {"listeners": (Listener.parse(f"http://{HOST}:0"),)}
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n"
LENGTH = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nsome"
WHOLE = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nsome"


@pytest.mark.parametrize("request_", [CHUNKED, LENGTH, WHOLE], ids=["chunks", "a length", "a whole request"])
@pytest.mark.parametrize("how", ["reset", "half-closed"])
def test_a_target_whose_client_breaks_off_is_reset_and_is_not_told_an_end(request_: bytes, how: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), Tunnel(**HTTP) as tunnel:
            await tunnel.provide()
            client = await tunnel.client()
            await client.send(request_)
            target = await tunnel.targets.accept()
            seen = b""
            while b"some" not in seen:
                seen += await target.receive(1)
            if how == "reset":
                client.reset()
            else:
                client.half_close()
            if request_ is WHOLE and how == "half-closed":
                assert await target.receive_all() == b""
            else:
                assert await target.receive_to_reset() in (b"", b"\r\n")

    asyncio.run(main())
