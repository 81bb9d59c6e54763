"""The content of the status document, which does not grow with the number of streams."""

import json
import os
import tempfile
from pathlib import Path

from loguru import logger

from brokers import Link, PeerInfo, PeerName, Role, Router
from goreprox.config.addresses import Address, Target
from goreprox.config.roles import ProviderConfig
from goreprox.http.counters import RequestCounters
from goreprox.process.instance import Instance
from goreprox.protocol.budget import Budget
from goreprox.protocol.limits import MIB
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.roles.provider import Provider
from goreprox.roles.sites import requests_of
from goreprox.status.snapshot import LISTED, Source
from goreprox.status.stream_log import LAST_ENDED, StreamLog
from goreprox.tunnel.driver import Driver
from goreprox.tunnel.peer import Peer
from tests.support.relay import Relay
from tests.support.sockets import HOST
from tests.support.waiting import eventually

PEER = PeerInfo(PeerName(Role.EDGE, "far", bytes(16)), 7, {"protocol": [1, 1], "services": ["web"]})


class Way:
    """A carrier that leads nowhere."""

    def __init__(self, label: str) -> None:
        self.label = label

    def send(self, peer_id: bytes, frames: object) -> bool:
        return False

    def link_condition(self, peer_id: bytes) -> None:
        """Nothing is known."""

    def announce(self, attributes: object) -> None:
        """Nobody listens."""

    async def close(self, *, linger_s: float) -> None:
        """There is nothing to close."""


def provider() -> Provider:
    target = Target("web", Address(HOST, 1))
    return Provider(ProviderConfig(targets=(target,), servers=(Address(HOST, 2),)))


def source(owner: Provider | None = None, **parts: object) -> Source:
    with tempfile.TemporaryDirectory() as path:
        instance = Instance.acquire(Path(path), "provider", "near", b"\xab" * 16)
        instance.release()
    return Source(instance, owner=owner, **parts)  # type: ignore[arg-type]


def stream(peer: Peer, budget: Budget) -> Stream:
    made = Stream(opener=True, service="web", client="c", budget=budget)
    made.write(b"four")
    peer.session.open(made)
    return made


async def test_the_document_sums_streams_up_and_does_not_grow_with_them() -> None:
    owner = provider()
    owner.driver.peer_up(Way("way"), PEER)
    (peer,) = owner.driver.peers.values()
    budget = Budget(total_bytes=1024 * MIB, max_streams=20_000)
    stream(peer, budget)
    one = len(json.dumps(source(owner).document()))
    for _ in range(9_999):
        stream(peer, budget)
    document = source(owner).document()
    assert document["peers"][0]["streams_open"] == document["peers"][0]["streams_total"] == 10_000
    assert document["peers"][0]["sent_bytes"] == 40_000
    assert len(json.dumps(document)) < one + 100


async def test_all_paths_to_a_peer_are_listed_and_none_is_in_use_until_it_responds() -> None:
    owner = provider()
    owner.driver.peer_up(Way("one"), PEER)
    owner.driver.peer_up(Way("two"), PEER)
    (peer,) = source(owner).document()["peers"]
    assert (peer["name"], peer["role"], peer["incarnation"]) == ("far", "edge", "0" * 8)
    assert peer["state"] == "down"
    assert peer["down_s"] is not None and peer["down_s"] >= 0
    assert [(path["label"], path["in_use"], path["fabric_epoch"]) for path in peer["paths"]] == [
        ("one", False, 7),
        ("two", False, 7),
    ]


async def test_ended_streams_are_counted_and_only_the_last_ones_kept() -> None:
    driver = provider().driver
    driver.peer_up(Way("way"), PEER)
    (peer,) = driver.peers.values()
    budget = Budget(total_bytes=64 * MIB, max_streams=100)
    streams = StreamLog(driver)
    for index in range(LAST_ENDED + 5):
        ended = stream(peer, budget)
        ended.abort(f"reason {index}")
        streams.ended(ended)
    streams.ended(Stream(opener=True, service="web", client="c", budget=budget))
    assert streams.count == LAST_ENDED + 6
    assert driver.budget.totals.ends == {"aborted": LAST_ENDED + 5, "done": 1}
    assert len(streams.last) == LAST_ENDED
    assert [(end["peer"], end["reason"], end["code"], end["sent_bytes"]) for end in list(streams.last)[-2:]] == [
        ("far", f"reason {LAST_ENDED + 4}", "aborted", 4),
        (None, "done", "done", 0),
    ]


async def test_an_ended_stream_is_logged_with_its_service_its_peer_and_its_bytes() -> None:
    driver = provider().driver
    driver.peer_up(Way("way"), PEER)
    (peer,) = driver.peers.values()
    logged: list[dict[str, object]] = []
    sink = logger.add(lambda line: logged.append(line.record["extra"]), level="DEBUG", format="{message}")
    of = stream(peer, Budget(total_bytes=64 * MIB, max_streams=1))
    StreamLog(driver).ended(of)
    logger.remove(sink)
    ended: dict[str, object] = {"service": "web", "peer": "far", "sent_bytes": 4, "received_bytes": 0, "reason": "done"}
    ended |= {"code": "done", "outages": 0, "client": "c", "number": of.number}
    assert [each for each in logged if each.get("event") == "stream_ended"] == [{"event": "stream_ended"} | ended]


async def test_the_document_says_whether_the_process_is_draining() -> None:
    owner = provider()
    assert source(owner).document()["draining"] is False
    owner.driver.drain()
    assert source(owner).document()["draining"] is True


async def test_a_broker_lists_its_peers_and_what_waits_for_slow_ones() -> None:
    router = Router()
    port = router.bind(Role.PROVIDER, HOST, 0)
    driver = Driver(provider(), role=Role.EDGE, budget=Budget(total_bytes=MIB, max_streams=1), grace_s=1)
    local = router.attach(PeerName(Role.EDGE, "far", bytes(16)), {}, driver)
    name = PeerName(Role.PROVIDER, "near", os.urandom(16))
    relay = Relay(port)
    await relay.start()
    link = Link(name, {}, HOST, relay.port, provider().driver)
    link.start()
    await eventually(lambda: len(router.peers) == 2 and link.state.name == "UP")
    broker = source(router=router).document()
    assert broker["streams"] is None
    assert (broker["peers"], broker["ends"]) == ([], [])
    sent = 0
    while not router.outboxes:  # the relay's loop is ours, and does not run meanwhile
        local.send(name.id, [bytes(1 << 14)])
        sent += 1
    told = source(router=router).document()["broker"]
    assert told is not None
    assert told["messages"] == sent
    assert told["dropped_messages"] == 0
    near = next(member for member in told["members"] if member["name"] == "near")
    assert near["role"] == "provider"
    assert near["outbox_messages"] == 1
    assert 1 << 14 <= near["outbox_bytes"] < (1 << 14) + 100
    assert [member["outbox_bytes"] for member in told["members"] if member is not near] == [0]
    local.send(bytes(17), [b"to nobody"])
    told = source(router=router).document()["broker"]
    assert told is not None and told["dropped_messages"] == 1
    (up,) = source(links=[link]).document()["links"]
    assert (up["label"], up["state"], up["problem"]) == (f"{HOST}:{relay.port}", "up", None)
    assert up["since_s"] >= 0
    await link.close(linger_s=0)
    assert source(links=[link]).document()["links"][0]["state"] == "down"
    await relay.stop()
    await router.close(linger_s=0)


async def test_the_documentation_has_every_field() -> None:
    owner = provider()
    owner.driver.peer_up(Way("way"), PEER)
    ended = Stream(opener=True, service="web", client="c", budget=Budget(total_bytes=MIB, max_streams=1))
    owner.stream_log.ended(ended)
    owner.bridges.connections.add(Waiter(ended))
    router = Router()
    local = router.attach(PeerName(Role.EDGE, "far", bytes(16)), {}, owner.driver)
    link = Link(PEER.name, {}, HOST, 1, owner.driver)
    document = source(owner, router=router, links=[link]).document()
    counted = RequestCounters()
    counted.add("web", 200, 1.0)
    http = requests_of(counted)
    shown: dict[str, object] = {
        "ports": {},
        "services": {},
        "certificates": [{"option": "tls-cert", "file": "cert.pem", "expires_at": 1.0}],
        "http": {"requests": {}, "durations": dict(http["durations"]["web"]), "bounds_s": http["bounds_s"]},
    }
    text = (Path(__file__).parents[2] / "docs/status.md").read_text(encoding="utf-8")
    assert [field for field in fields(dict(document) | shown) if f"`{field}`" not in text] == []
    await link.close(linger_s=0)
    await local.close(linger_s=0)
    await router.close(linger_s=0)


async def test_the_latest_open_connections_are_listed() -> None:
    owner = provider()
    budget = Budget(total_bytes=1024 * MIB, max_streams=1000)
    for number in range(1000):
        made = Stream(opener=True, service="web", client=f"client {number}", budget=budget)
        owner.bridges.connections.add(Waiter(made, began_at=float(number)))
    listed = source(owner).document()["connections"]
    assert [each["client"] for each in listed] == [f"client {number}" for number in range(999, 999 - LISTED, -1)]


class Waiter:
    """Owns a stream that has no provider."""

    def __init__(self, stream: Stream, began_at: float = 0.0) -> None:
        self.stream = stream
        self.began_at = began_at

    def abort(self, reason: str, code: EndCode) -> None: ...


def fields(value: object) -> set[str]:
    """Collect the keys of all objects in a document; each list in it has one to look at."""
    if isinstance(value, dict):
        return set(value).union(*map(fields, value.values()))
    if isinstance(value, list):
        assert value, "an empty list shows no fields"
        return fields(value[0])
    return set()
