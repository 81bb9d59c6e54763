"""Each check of the doctor, made to fail and to pass: brokers, keys, services, targets, ports and limits are real."""

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from brokers import BrokerSecurity, Grant, KeyPair, LinkSecurity, Role, SocketAddress, Timings
from brokers.envelope import Refused, control
from goreprox.config.addresses import Address, Listener, Target
from goreprox.config.auth import AuthUrl
from goreprox.config.publish import Publish
from goreprox.config.roles import BrokerConfig, EdgeConfig, ProviderConfig, ServerConfig
from goreprox.roles.broker_check import Result, State
from goreprox.roles.doctor import Config, examine
from tests.support.configs import configured
from tests.support.fabric import Fabric, name
from tests.support.sockets import HOST, abort, closed_port, stop_accepting
from tests.support.tls import Authority
from tests.support.waiting import eventually

PROTOCOL = {"protocol": [1, 1]}
SERVER = KeyPair.generate()
PATIENT_S = 60.0


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be outside of a container wherever the tests run, and let no deadline depend on how busy the machine is."""
    for module in ("dial", "broker_check"):
        monkeypatch.setattr(f"goreprox.roles.{module}.in_container", lambda: False)
    monkeypatch.setattr("brokers.diagnosis.PROBE_S", PATIENT_S)
    monkeypatch.setattr("goreprox.roles.broker_check.VERDICT_S", 3 * PATIENT_S)
    monkeypatch.setattr("goreprox.roles.broker_check.Timings", functools.partial(Timings, connect_timeout_s=PATIENT_S))


class Examined:
    """What the doctor has found."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results

    def of(self, check: str) -> list[Result]:
        return [result for result in self.results if result.check == check]

    def one(self, check: str) -> Result:
        (result,) = self.of(check)
        return result

    def passed(self, check: str) -> bool:
        results = self.of(check)
        assert results, f"{check} was not checked: {self.results}"
        return all(result.state is State.OK for result in results)

    def failed(self, check: str) -> str:
        """Return what a check that failed says, and what to do about it."""
        result = self.one(check)
        assert result.state is State.FAILED and result.remedy
        return f"{result.message}; {result.remedy}"


async def examined(config: Config) -> Examined:
    return Examined(await asyncio.to_thread(lambda: list(examine(config))))


def provider(runtime: Path, *servers: Address, **options: Any) -> ProviderConfig:
    options = {"targets": (Target("web", Address(HOST, 1)),), "name": "laptop"} | options
    return configured(ProviderConfig, servers=servers, runtime_dir=runtime, **options)


def edge(runtime: Path, broker: Address, **options: Any) -> EdgeConfig:
    listeners = (Listener(Address(HOST, 0), "web"),)
    return configured(EdgeConfig, brokers=(broker,), runtime_dir=runtime, listeners=listeners, **options)


def at(fabric: Fabric, role: Role = Role.PROVIDER) -> Address:
    return Address(HOST, fabric.ports[role])


@contextlib.asynccontextmanager
async def listening(respond: bytes = b"", **options: Any) -> AsyncIterator[int]:
    """Serve a port that responds to a connection with these bytes and closes it, or keeps it and is silent."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if respond:
            writer.write(respond)
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0, **options)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        await stop_accepting(server)
        for writer in writers:
            if writer.get_extra_info("socket") is not None:  # as it is for one with TLS that is closed
                abort(writer)
        await asyncio.sleep(0)


class Keys:
    """An authority that knows one key, and one service."""

    def __init__(self, role: Role, who: str) -> None:
        self.keys = KeyPair.generate()
        self._grant = Grant(role, who)

    def grant(self, public_key: bytes) -> Grant | None:
        return self._grant if public_key == self.keys.public else None

    def certified(self, public_key: bytes, attributes: Mapping[str, object]) -> Mapping[str, object]:
        return attributes

    def objection(self, public_key: bytes, attributes: Mapping[str, object]) -> str | None:
        return None if attributes["services"] == ["web"] else "the key laptop does not allow the service ssh"


# Names and connections.


async def test_a_name_is_resolved_and_each_address_is_shown(runtime: Path) -> None:
    async with Fabric() as fabric:
        found = await examined(provider(runtime, Address("localhost", at(fabric).port)))
        assert found.passed("resolve") and HOST in found.one("resolve").message


async def test_a_name_without_an_address_fails_with_the_option_to_change_it(runtime: Path) -> None:
    found = await examined(provider(runtime, Address("a..b", 9887)))
    assert "cannot be resolved" in found.failed("resolve") and "--server HOST" in found.failed("resolve")
    assert not found.of("tcp") and not found.of("service"), "what depends on it is left out"


async def test_a_port_where_nobody_listens_fails_with_the_reason(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closed_port() as port:
        text = (await examined(provider(runtime, Address(HOST, port)))).failed("tcp")
        assert "Connection refused" in text and "firewall" in text and "container" not in text
        monkeypatch.setattr("goreprox.roles.broker_check.in_container", lambda: True)
        assert "is this container itself" in (await examined(provider(runtime, Address(HOST, port)))).failed("tcp")


async def test_an_address_that_does_not_respond_beside_one_that_does_is_a_warning(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Fabric() as fabric:
        port = at(fabric).port

        async def two(host: str | None, _: int) -> list[SocketAddress]:
            found = ("127.0.0.2", HOST) if host == "two.example" else (str(host),)
            return [(socket.AF_INET, (address, port)) for address in found]

        monkeypatch.setattr("brokers.proxy.resolve", two)
        found = await examined(provider(runtime, Address("two.example", port)))
        assert [result.state for result in found.of("tcp")] == [State.WARNING, State.OK]
        assert found.passed("join")


@pytest.mark.parametrize(
    ("response", "what"), [(b"", "it sends nothing"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it speaks HTTP")]
)
async def test_something_else_than_a_broker_is_told_apart(
    runtime: Path, response: bytes, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not response:
        monkeypatch.setattr("brokers.diagnosis.PROBE_S", 1.0)  # the kernel connects at once, and nothing follows
    async with listening(response) as port:
        found = await examined(provider(runtime, Address(HOST, port)))
        assert found.passed("tcp")
        assert what in found.failed("zmtp") and "providers have 9887" in found.failed("zmtp")


# Keys, and what the broker thinks of us.


async def test_a_broker_accepts_a_key_with_its_name_and_services(runtime: Path) -> None:
    keys = Keys(Role.PROVIDER, "laptop")
    async with Fabric(security=BrokerSecurity(SERVER, keys)) as fabric:
        found = await examined(provider(runtime, at(fabric), security=LinkSecurity(keys.keys, (SERVER.public,))))
        assert found.passed("tcp") and found.passed("zmtp") and found.passed("join")
        assert "keys accepted" in found.one("join").message


async def test_our_key_is_named_where_the_broker_rejects_it(runtime: Path) -> None:
    ours = KeyPair.generate()
    async with Fabric(security=BrokerSecurity(SERVER, Keys(Role.PROVIDER, "laptop"))) as fabric:
        found = await examined(provider(runtime, at(fabric), security=LinkSecurity(ours, (SERVER.public,))))
        text = found.failed("join")
        assert "does not know our key" in text and ours.public.decode() in text and "goreprox keys show laptop" in text


async def test_the_expected_key_of_the_broker_is_named_where_it_has_another(runtime: Path) -> None:
    keys, expected = Keys(Role.PROVIDER, "laptop"), KeyPair.generate().public
    async with Fabric(security=BrokerSecurity(SERVER, keys)) as fabric:
        text = (await examined(provider(runtime, at(fabric), security=LinkSecurity(keys.keys, (expected,))))).failed(
            "join"
        )
        assert "another key than we expect" in text and expected.decode() in text and "new join string" in text


async def test_keys_on_one_side_alone_fail(runtime: Path) -> None:
    keys = Keys(Role.PROVIDER, "laptop")
    async with Fabric() as plain, Fabric(security=BrokerSecurity(SERVER, keys)) as secured:
        found = await examined(provider(runtime, at(plain), security=LinkSecurity(keys.keys, (SERVER.public,))))
        assert "has no keys" in found.failed("join")
        assert "wants keys" in (await examined(provider(runtime, at(secured)))).failed("join")


async def test_a_service_that_the_key_does_not_allow_is_what_the_broker_says(runtime: Path) -> None:
    keys = Keys(Role.PROVIDER, "laptop")
    async with Fabric(security=BrokerSecurity(SERVER, keys)) as fabric:
        config = provider(
            runtime,
            at(fabric),
            security=LinkSecurity(keys.keys, (SERVER.public,)),
            targets=(Target("ssh", Address(HOST, 1)),),
        )
        result = (await examined(config)).one("join")
        assert result.state is State.FAILED and "does not allow the service ssh" in result.message


async def test_a_version_of_the_fabric_that_the_broker_refuses_is_shown_without_control_characters(
    runtime: Path,
) -> None:
    async with Fabric() as fabric:
        router, port = fabric.broker()

        async def refuse() -> None:
            await eventually(lambda: router.poll(0))
            peer, *_ = router.recv_multipart()
            router.send_multipart([peer, *map(bytes, control(Refused("speaks fabric versions 7\x1b[2J")))])

        refusing = asyncio.create_task(refuse())
        result = (await examined(provider(runtime, Address(HOST, port)))).one("join")
        await refusing
        assert result.state is State.FAILED
        assert "speaks fabric versions 7" in result.message and result.message.isprintable()


# Who is at the other end.


async def test_versions_of_sessions_are_compared_with_each_peer(runtime: Path) -> None:
    async with Fabric() as fabric:
        link, _ = fabric.link(name(Role.EDGE, "old"), attributes={"protocol": [7, 8], "services": ["web"]})
        await eventually(lambda: link.up)
        found = await examined(provider(runtime, at(fabric)))
        assert "speaks protocol versions [7, 8]" in found.failed("protocol")
        assert found.one("protocol").subject == "edge old"
        link.announce(PROTOCOL | {"services": ["web"]})
        await eventually(lambda: fabric.router.peers[0].attributes["protocol"] == [1, 1])
        assert (await examined(provider(runtime, at(fabric)))).passed("protocol")


@pytest.mark.parametrize("role", [Role.PROVIDER, Role.EDGE])
async def test_a_service_needs_somebody_at_its_other_end(runtime: Path, role: Role) -> None:
    other = "an edge" if role is Role.PROVIDER else "a provider"
    async with Fabric() as fabric:
        config = (provider if role is Role.PROVIDER else edge)(runtime, at(fabric, role))
        assert f"no {other.split()[1]} is connected" in (await examined(config)).failed("service")
        link, _ = fabric.link(name(role.other, "far"), attributes=PROTOCOL | {"services": ["wbe"]})
        await eventually(lambda: link.up)
        text = (await examined(config)).failed("service")
        assert "wbe" in text and "misspelt" in text
        link.announce(PROTOCOL | {"services": ["web"]})
        await eventually(lambda: fabric.router.peers[0].attributes["services"] == ["web"])
        found = await examined(config)
        assert found.passed("service") and "far" in found.one("service").message


async def test_a_published_name_needs_an_edge_that_may_serve_it(runtime: Path) -> None:
    async with Fabric() as fabric:
        config = provider(runtime, at(fabric), names=(Publish.parse("http://app.example.com"),))
        attributes = PROTOCOL | {"services": ["web"], "publishes": True}
        link, _ = fabric.link(name(Role.EDGE, "far"), attributes=attributes)
        await eventually(lambda: link.up)
        found = await examined(config)
        wanting = next(each for each in found.of("service") if each.subject == "http://app.example.com@laptop")
        assert wanting.state is State.FAILED and "--publish-ports" in (wanting.remedy or "")
        link.announce(attributes | {"granted": True})
        await eventually(lambda: fabric.router.peers[0].attributes.get("granted"))
        assert all(each.state is State.OK for each in (await examined(config)).of("service"))


async def test_a_doctor_is_nobody_to_another_doctor(runtime: Path) -> None:
    async with Fabric() as fabric:
        link, _ = fabric.link(name(Role.EDGE, "doctor"), attributes={"services": ["web"]})
        await eventually(lambda: link.up)
        assert "no edge is connected" in (await examined(provider(runtime, at(fabric)))).failed("service")


async def test_a_link_of_the_same_name_stays_as_it_is(runtime: Path) -> None:
    async with Fabric() as fabric:
        link, recorder = fabric.link(name(Role.PROVIDER, "laptop"), attributes=PROTOCOL | {"services": ["web"]})
        await eventually(lambda: link.up)
        (before,) = fabric.router.peers
        assert (await examined(provider(runtime, at(fabric)))).passed("join")
        await eventually(lambda: len(fabric.router.peers) == 1)
        assert fabric.router.peers == [before] and link.up and not recorder.downs


# Targets.


@pytest.mark.parametrize("host", [HOST, "localhost"])
async def test_a_target_is_reached_at_one_of_its_addresses(runtime: Path, host: str) -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        config = provider(runtime, Address("a..b", 1), targets=(Target("web", Address(host, port)),))
        assert (await examined(config)).passed("target")


async def test_a_target_that_refuses_fails_with_what_to_try_instead(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closed_port() as port:
        config = provider(runtime, Address("a..b", 1), targets=(Target("web", Address(HOST, port)),))
        text = (await examined(config)).failed("target")
        assert "Connection refused" in text and f"localhost:{port}" in text and "container" not in text
        monkeypatch.setattr("goreprox.roles.dial.in_container", lambda: True)
        assert f"host.docker.internal:{port}" in (await examined(config)).failed("target")


async def test_a_target_without_an_address_or_a_response_fails(runtime: Path) -> None:
    with socket.create_server((HOST, 0), backlog=0) as full:
        filling = [socket.socket() for _ in range(4)]
        for sock in filling:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        targets = (Target("web", Address("a..b", 80)), Target("slow", Address(*full.getsockname())))
        found = await examined(provider(runtime, Address("a..b", 1), targets=targets, timeout_s=0.5))
        assert ["name cannot be resolved" in each.message for each in found.of("target")] == [True, False]
        assert "no response within 0.5 s" in found.of("target")[1].message
        for sock in filling:
            sock.close()


async def test_a_target_with_tls_needs_a_certificate_that_is_trusted(runtime: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.cert, authority.key)
    async with listening(ssl=context) as port:
        targets = (Target("web", Address(HOST, port), tls=True),)
        untrusted = await examined(provider(runtime, Address("a..b", 1), targets=targets))
        assert "certificate" in untrusted.failed("target")
        trusted = await examined(provider(runtime, Address("a..b", 1), targets=targets, ca=authority.ca_file))
        assert trusted.passed("target")


async def test_an_authentication_service_is_reached_with_a_certificate_that_is_trusted(
    runtime: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.cert, authority.key)

    async def asked(url: str, ca: Path | None = None) -> Examined:
        listeners = (Listener.parse(f"http://{HOST}:0"),)
        auth = {"urls": (AuthUrl.parse(url),), "auth_ca": ca}
        return await examined(configured(ServerConfig, runtime_dir=runtime, listeners=listeners, **auth))

    async with listening(ssl=context) as port:
        url = f"https://{HOST}:{port}/verify"
        assert "certificate" in (await asked(url)).failed("auth")
        found = await asked(url, authority.ca_file)
        assert found.passed("auth") and found.one("auth").subject == url
        assert not (await asked(url, runtime / "missing")).of("auth"), "the start has failed already"
    with closed_port() as port:
        text = (await asked(f"http://{HOST}:{port}/verify")).failed("auth")
        assert "refused" in text and "--auth-url" in text


# This machine.


async def test_directories_are_looked_at(runtime: Path, tmp_path: Path) -> None:
    config = configured(BrokerConfig, runtime_dir=runtime, state_dir=tmp_path / "state")
    assert (await examined(config)).passed("start")
    assert not runtime.exists()
    (tmp_path / "state").write_text("a file")
    runtime.mkdir(mode=0o777)
    runtime.chmod(0o777)
    failed = [result for result in (await examined(config)).of("start") if result.state is State.FAILED]
    assert [result.subject.partition(" ")[0] for result in failed] == ["runtime-dir", "state-dir"]
    assert failed[0].remedy == f"chmod 700 {runtime}"


@pytest.mark.parametrize("kind", [ServerConfig, BrokerConfig])
async def test_memory_is_compared_with_the_limit(
    runtime: Path, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(kind, runtime_dir=runtime)
    assert (await examined(config)).passed("memory")
    monkeypatch.setattr("goreprox.roles.doctor.memory_limit_bytes", lambda: 64 << 20)
    found = await examined(config)
    assert "64 MiB are allowed" in found.failed("memory")
    assert ("--memory" in found.failed("memory")) is (kind is ServerConfig)
    monkeypatch.setattr("goreprox.roles.doctor.memory_limit_bytes", lambda: None)
    assert not (await examined(config)).of("memory")


async def test_each_worker_needs_its_own_memory(runtime: Path) -> None:
    listeners = (Listener(Address(HOST, 8080), "web"),)
    options = {"brokers": (Address("a..b", 1),), "runtime_dir": runtime, "listeners": listeners}
    one = (await examined(configured(EdgeConfig, **options))).one("memory")
    three = (await examined(configured(EdgeConfig, **options, workers=3))).one("memory")
    assert (one.subject, three.subject) == ("320 MiB needed", "960 MiB needed")


@pytest.mark.parametrize(("kind", "option"), [(ServerConfig, "--max-connections"), (BrokerConfig, "--max-peers")])
async def test_the_hard_limit_of_descriptors_is_compared_with_what_is_needed(
    runtime: Path, kind: type[Any], option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(kind, runtime_dir=runtime)
    for limit, passes in ((14_196, True), (4195, False)):
        monkeypatch.setattr("resource.getrlimit", lambda _, limit=limit: (limit, limit))
        found = await examined(config)
        assert found.passed("descriptors") if passes else option in found.failed("descriptors")


async def test_links_within_tls_need_four_descriptors_each(runtime: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = {"certs": (authority.cert,), "keys": (authority.key,)}
    config = configured(
        BrokerConfig, runtime_dir=runtime, providers=Address(HOST, 0, tls=True), max_peers=10, **certificate
    )
    assert (await examined(config)).one("descriptors").subject == "140 needed"


# Ports for peers.


async def test_a_port_for_peers_has_a_broker_or_nobody_but_no_other_program(runtime: Path) -> None:
    def broker(port: int) -> BrokerConfig:
        return configured(BrokerConfig, runtime_dir=runtime, providers=Address(HOST, port), edges=Address(HOST, 0))

    async with Fabric() as fabric:
        found = await examined(broker(at(fabric).port))
        assert found.passed("port") and "a broker listens" in found.one("port").message
    with closed_port() as port:
        found = await examined(broker(port))
        assert found.passed("port") and "nobody listens" in found.one("port").message
    async with listening(b"SSH-2.0-OpenSSH\r\n") as port:
        text = (await examined(broker(port))).failed("port")
        assert "it speaks SSH" in text and "--providers" in text


async def test_a_server_that_does_not_run_is_a_warning(runtime: Path) -> None:
    config = configured(ServerConfig, runtime_dir=runtime, listeners=(Listener(Address(HOST, 0), "web"),))
    found = await examined(config)
    assert found.one("running").state is State.WARNING and not found.of("service")
