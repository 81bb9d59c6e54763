"""Authentication services that are asked by a socket: good, slow and hostile ones, and what each may cost."""

import asyncio
import ssl
import tracemalloc
from pathlib import Path

import pytest

from brokers import SocketAddress
from goreprox.config.auth import AuthUrl
from goreprox.http.auth_service import MAX_RESPONSE, MOST, AuthService
from goreprox.http.forward_auth import MAX_BODY, Allowed, Verdict
from goreprox.http.requests import Rejected
from tests.support.servers import Handler, serving
from tests.support.sockets import HOST, closed_port, reset_now
from tests.support.tls import Authority
from tests.support.waiting import DEADLINE_S, eventually

QUESTION = b"GET /verify HTTP/1.1\r\nHost: auth\r\n\r\n"
SHORT_S = 0.3
COPIED = frozenset((b"x-user",))


def responding(*parts: bytes, then: str = "wait") -> Handler:
    """Respond to each question with these parts; then wait, close or reset."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"\r\n\r\n") == QUESTION
        for part in parts:
            writer.write(part)
            await writer.drain()
        match then:
            case "close":
                writer.close()
            case "reset":
                reset_now(writer)
            case _:
                await reader.read()

    return handler


def service(port: int, *, timeout_s: float = DEADLINE_S, host: str = HOST, ca: Path | None = None) -> AuthService:
    url = AuthUrl.parse(f"{'https' if ca else 'http'}://{host}:{port}/verify")
    return AuthService(url, COPIED, ca=ca, timeout_s=timeout_s)


async def asked(asking: AuthService) -> Verdict:
    """Return the verdict of a service, after which nothing of the question is left."""
    found: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
    asking.ask(QUESTION, found.set_result)
    verdict = await asyncio.wait_for(found, DEADLINE_S)
    assert not asking._tasks
    return verdict


async def verdict_of(handler: Handler, *, timeout_s: float = DEADLINE_S) -> Verdict:
    async with serving(handler) as port:
        return await asked(service(port, timeout_s=timeout_s))


def head(status: int, *fields: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 %d Reason" % status, *fields, b"", b""])


async def test_a_2xx_lets_in_at_once_whatever_body_follows() -> None:
    allowed = Allowed([(b"X-User", b"alice")], [b"a=1"])
    fields = (b"X-User: alice", b"X-Other: b", b"Set-Cookie: a=1")
    for more in (b"Content-Length: 0", b"Content-Length: 99", b"Transfer-Encoding: chunked", b"A: body until the end"):
        assert await verdict_of(responding(head(200, *fields, more), b"x" * 50)) == allowed
    early = responding(b"HTTP/1.1 103 Early\r\nX-User: root\r\n\r\n", head(204, *fields))
    assert await verdict_of(early) == allowed


@pytest.mark.parametrize(
    ("parts", "then"),
    [
        ((head(302, b"Content-Length: 5"), b"lo", b"gin"), "wait"),
        ((head(302, b"Transfer-Encoding: chunked"), b"2\r\nlo\r\n3\r\ngin\r\n0\r\n\r\n"), "wait"),
        ((head(302), b"lo", b"gin"), "close"),
    ],
)
async def test_a_redirect_is_passed_on_with_its_body_however_that_ends(parts: tuple[bytes, ...], then: str) -> None:
    found = await verdict_of(responding(*parts, then=then))
    assert isinstance(found, Rejected)
    assert found.content is not None
    assert (found.status, found.content[1]) == (302, b"login")


async def test_a_redirect_may_have_many_cookies() -> None:
    cookies = [b"Set-Cookie: c%d=%b" % (number, b"x" * 500) for number in range(100)]
    found = await verdict_of(responding(head(302, b"Content-Length: 0", *cookies)))
    assert isinstance(found, Rejected)
    assert found.content is not None
    assert [b"%b: %b" % field for field in found.content[0] if field[0] == b"Set-Cookie"] == cookies


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (responding(then="close"), "the head is truncated"),
        (responding(b"HTTP/1.1 200 OK\r\nX-User", then="close"), "the head is truncated"),
        (responding(b"SSH-2.0-x\r\n"), "this is not HTTP"),
        (responding(b"\0" * 9), "this is not HTTP"),
        (responding(head(200, b"X-User: a\rb")), "gave no valid response"),
        (responding(head(200, b"X-User: a\r\n b")), "gave no valid response"),
        (responding(head(200, b"X User: a")), "gave no valid response"),
        (responding(head(200, b"X-User: a\0b")), "gave no valid response"),
        (responding(head(200, b"X-User: " + b"a" * 70_000)), "a head of more than 65536 bytes"),
        (responding(head(302, *[b"Set-Cookie: a"] * 6000)), "a head of more than 65536 bytes"),
        (responding(head(101, b"Upgrade: x")), "it switches protocols"),
        (responding(head(401, b"Content-Length: 70000"), b"x" * 70_000), f"a body of more than {MAX_BODY:,} bytes"),
        (responding(head(401), *[b"x" * 10_000] * 9), f"a body of more than {MAX_BODY:,} bytes"),
        (responding(head(401, b"Content-Length: 9"), b"x", then="close"), "gave no valid response"),
        (responding(head(401, b"Transfer-Encoding: chunked"), b"zz\r\n"), "gave no valid response"),
        (responding(head(401, b"Content-Length: 1", b"Content-Length: 2"), b"x"), "gave no valid response"),
        (responding(*[head(103, b"A: " + b"b" * 9000)] * 40), f"more than {MAX_RESPONSE:,} bytes"),
        (responding(head(500)), "responded with 500"),
    ],
)
async def test_garbage_and_floods_are_502(handler: Handler, why: str) -> None:
    found = await verdict_of(handler)
    assert isinstance(found, Rejected)
    assert (found.status, why in found.detail) == (502, True), found.detail


async def test_a_service_that_cannot_be_reached_or_resets_is_503() -> None:
    found = await verdict_of(responding(then="reset"))
    assert isinstance(found, Rejected)
    assert (found.status, "reset" in found.detail) == (503, True), found.detail
    with closed_port() as port:
        found = await asked(service(port))
    assert isinstance(found, Rejected)
    assert (found.status, "cannot be reached: Connection refused" in found.detail) == (503, True), found.detail


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early\r\n\r\n")
        await asyncio.sleep(SHORT_S / 10)


@pytest.mark.parametrize("handler", [responding(), responding(b"HTTP/1.1 200 OK\r\n"), responding(head(401)), dripping])
async def test_a_service_that_never_responds_is_503_after_the_timeout(handler: Handler) -> None:
    found = await verdict_of(handler, timeout_s=SHORT_S)
    assert isinstance(found, Rejected)
    assert (found.status, f"gave no verdict within {SHORT_S:g} s" in found.detail) == (503, True), found.detail


async def test_a_name_is_looked_up_once_at_a_time_and_one_without_an_address_is_503(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookups: list[str] = []

    async def resolve(host: str, port: int) -> list[SocketAddress]:
        lookups.append(host)
        await asyncio.sleep(0)
        raise OSError(None, "no such name")

    monkeypatch.setattr("goreprox.net.names.resolve", resolve)
    asking = service(80, host="auth.example")
    found: list[Verdict] = []
    for _ in range(5):
        asking.ask(QUESTION, found.append)
    await eventually(lambda: len(found) == 5, "all verdicts")
    assert lookups == ["auth.example"]
    assert all(isinstance(each, Rejected) and "no such name" in each.detail for each in found)


async def test_only_so_many_are_asked_about_at_a_time_and_the_others_wait_their_turn() -> None:
    held: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await reader.read()

    async with serving(hold) as port:
        asking = service(port)
        found: list[Verdict] = []
        cancels = [asking.ask(QUESTION, found.append) for _ in range(MOST + 10)]
        await eventually(lambda: len(held) == MOST, "as many as there may be")
        for cancel in cancels[:5]:
            cancel()  # their clients have left
        for writer in held[5:10]:
            writer.write(head(200))
        await eventually(lambda: len(held) == MOST + 10, "the others have their turn")
        for writer in held:
            writer.write(head(200))
        await eventually(lambda: len(found) == MOST + 5, "all that were not cancelled")
        assert not asking._tasks


async def test_memory_for_a_hostile_response_is_bounded() -> None:
    flood = responding(head(401), *[b"x" * 60_000] * 50)
    async with serving(flood) as port:
        await asked(service(port))
        tracemalloc.start()
        try:
            await asked(service(port))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 4 * MAX_RESPONSE  # that of the service in this process, too


async def test_its_certificate_must_be_signed_by_a_trusted_authority(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    ours, theirs = Authority(tmp_path), Authority(tmp_path / "theirs")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours.cert, ours.key)
    async with serving(responding(head(200)), context) as port:
        assert isinstance(await asked(service(port, ca=ours.ca_file)), Allowed)
        for wrong in (service(port, ca=theirs.ca_file), service(port, ca=ours.ca_file, host="localhost")):
            found = await asked(wrong)
            assert isinstance(found, Rejected)
            assert (found.status, "its certificate does not count" in found.detail) == (503, True), found.detail


async def test_a_fault_lets_nobody_in(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    def fail(*_: object) -> Verdict:
        raise ZeroDivisionError

    monkeypatch.setattr("goreprox.http.auth_service.verdict", fail)
    found = await verdict_of(responding(head(200)))
    assert isinstance(found, Rejected)
    assert found.status == 502
    assert any("a fault in asking http://" in line for line in lines)
