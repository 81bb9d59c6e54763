"""What a session is for the process that replaces this one: complete, checked, and in memory once."""

import io
import tracemalloc
from typing import Any

import cbor2
import pytest

from goreprox.endpoint import Endpoint
from goreprox.process.handover import moved
from goreprox.protocol.budget import Budget
from goreprox.protocol.endings import Endings
from goreprox.protocol.epochs import Epochs, Phase
from goreprox.protocol.errors import ExportError
from goreprox.protocol.events import Abort, Code, Refuse
from goreprox.protocol.export import export_session, export_stream, restore_session, restore_stream
from goreprox.protocol.fields import Fields
from goreprox.protocol.limits import KIB, MAX_PAYLOAD, MIB
from goreprox.protocol.multiplexer import Multiplexer
from goreprox.protocol.notices import Kind
from goreprox.protocol.openings import Openings
from goreprox.protocol.receiver import ReceiveHalf
from goreprox.protocol.sender import SendHalf
from goreprox.protocol.session import Session
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import Counters
from tests.support.network import Network

EPOCH = "belongs to an epoch, which ends with the process"
OWN = "the new process has its own"
MARKS = "exported"
PARTS = "its own parts are exported"

ATTRIBUTES: dict[type, dict[str, str]] = {
    Session: {
        "opener": "the role of the process says it",
        "failed": MARKS,
        "peer_draining": MARKS,
        "draining": MARKS,
        "version": MARKS,
        "_budget": OWN,
        "_grace_s": OWN,
        "epochs": PARTS,
        "endings": PARTS,
        "multiplexer": PARTS,
        "_outbox": EPOCH,
        "streams": PARTS,
        "notices": "the driver has taken all",
        "counters": PARTS,
        "_goodbye": "a process that says goodbye is not upgraded",
    },
    Epochs: {
        "_opener": "the role of the process says it",
        "_own_grace_s": OWN,
        "_paths": EPOCH,
        "_pause_s": EPOCH,
        "_resume_at": EPOCH,
        "_used_since": EPOCH,
        "grace_s": MARKS,
        "lost_at": MARKS,
        "moved": EPOCH,
        "number": MARKS,
        "path": EPOCH,
        "phase": "DOWN, or FAILED if the session has failed",
    },
    Multiplexer: {
        "epochs": PARTS,
        "streams": PARTS,
        "notices": "the driver has taken all",
        "counters": PARTS,
        "openings": PARTS,
        "resumption": EPOCH,
        "next_id": MARKS,
        "peer_window": MARKS,
        "_opener": "the role of the process says it",
        "_budget": OWN,
        "_outbox": EPOCH,
        "_endings": PARTS,
    },
    Endings: {
        "carried": EPOCH,
        "last_words": MARKS,
        "_resetting": "the streams in state RESETTING; each epoch gives them all their time again",
    },
    Openings: {"_sent": MARKS, "_unsent": EPOCH},
    Counters: dict.fromkeys(["outages", "replayed_bytes", "opened", "sent_bytes", "received_bytes"], MARKS),
    Stream: {
        **dict.fromkeys(["accepted", "client", "destination", "id", "opener", "service", "state"], MARKS),
        **dict.fromkeys(["end_code", "end_reason", "number", "outages_before", "receive", "send"], MARKS),
        "client_key": "follows from the client",
        "deficit": EPOCH,
        "place": EPOCH,
        "host": "the session that is restored",
        "owner": "its owner is exported beside the session",
        "reset_sent": "each epoch sends the reset again",
    },
    SendHalf: {
        **dict.fromkeys(["acked", "end", "eof", "eof_sent", "finished", "limit", "sent", "_unacked", "_unsent"], MARKS),
        "_budget": OWN,
        "pool_used_bytes": "follows from the marks",
    },
    ReceiveHalf: {
        **dict.fromkeys(["_acked", "chunks", "delivered", "eof", "eof_delivered", "limit", "received"], MARKS),
        "_budget": OWN,
        "_ack_from": "follows from the window",
        "_window": "what was granted with the latest Ack",
        "_mark": "the pace is measured anew",
        "_mark_at": "the pace is measured anew",
        "pool_used_bytes": "follows from the marks",
    },
    Budget: {
        "max_streams": "exported beside the sessions",
        "pool_bytes": OWN,
        "reserved_bytes": OWN,
        "totals": "exported beside the sessions",
        "told_bytes": "exported beside the sessions",
        "pool_used_bytes": "the sum of what streams use",
    },
}
"""Every attribute of what makes up a session, and how the new process comes by it."""


@pytest.mark.pure
@pytest.mark.parametrize("kind", ATTRIBUTES, ids=lambda kind: kind.__name__)
def test_every_attribute_is_accounted_for(kind: type) -> None:
    slots = getattr(kind, "__slots__", None)
    names = set(vars(session()) if kind is Session else vars(session().multiplexer)) if slots is None else set(slots)
    assert set(ATTRIBUTES[kind]) == names


def budget() -> Budget:
    return Budget(total_bytes=4 * MIB, max_streams=64)


def session(*, opener: bool = True) -> Session:
    return Session(opener=opener, version=1, budget=budget(), grace_s=60.0, wake=lambda: None, now=0.0)


def eventful() -> Network:
    """Sessions with streams in all states, whose bytes are partly sent, received and delivered."""
    net = Network(1)
    net.connect("a")
    clients = [net.open() for _ in range(6)]
    for _ in range(5):
        net.step()
    targets = list(net.targets.values())
    for client, target in zip(clients, targets, strict=True):
        client.write(40 * KIB)
        target.write(100)
    net.step()
    for socket in (*clients, *targets):
        socket.deliver(77, net.now)
    clients[0].write_eof()
    targets[1].reset(net.now)
    clients[2].reset(net.now)
    clients[3].stream.abort("a test")
    net.open()
    net.step(deliver=False)
    net.open()
    net.cut("a")
    net._notices("edge")
    net._notices("provider")
    net.sessions["provider"].drain()
    net.sessions["edge"].peer_draining = True
    clients[4].write(1000)
    return net


def exported(of: Session, *, payload: bool = False) -> list[Any]:
    return [cbor2.loads(cbor2.dumps(item)) for item in moved(export_session(of, payload=payload))]


def restored(items: list[Any], *, opener: bool = True, total_bytes: int = 4 * MIB) -> Session:
    memory = Budget(total_bytes=total_bytes, max_streams=64)
    return restore_session(iter(items), opener=opener, budget=memory, grace_s=60.0, wake=lambda: None, now=1.0)


@pytest.mark.parametrize("end", ["edge", "provider"])
def test_a_restored_session_is_the_same(end: str) -> None:
    net = eventful()
    of = net.sessions[end]
    assert {stream.state for stream in of.streams.values()} >= {State.OPEN}
    streams = {stream_id: bytes_of(stream) for stream_id, stream in of.streams.items()}
    before = exported(of)
    whole = exported(of, payload=True)
    assert all(not bytes_of(stream)[0] for stream in of.streams.values()), "bytes are kept twice"
    after = restored(whole, opener=end == "edge")
    assert exported(after) == before
    assert {stream_id: bytes_of(stream) for stream_id, stream in after.streams.items()} == streams
    assert after.epochs.phase is Phase.DOWN
    assert after.streams is after.multiplexer.streams


def bytes_of(stream: Stream) -> tuple[bytes, bytes]:
    return b"".join(map(bytes, [*stream.send._unacked, *stream.send._unsent])), b"".join(stream.receive.chunks)


def test_an_export_without_payload_changes_nothing_and_can_be_restored() -> None:
    net = eventful()
    before = [bytes_of(stream) for stream in net.sessions["edge"].streams.values()]
    after = restored(exported(net.sessions["edge"]))
    assert [bytes_of(stream) for stream in net.sessions["edge"].streams.values()] == before
    assert exported(after) == exported(net.sessions["edge"])
    assert not any(any(bytes_of(stream)) for stream in after.streams.values())


def test_an_export_without_payload_may_be_taken_in_the_midst_of_an_epoch() -> None:
    net = Network(1)
    net.connect("a")
    for _ in range(3):
        net.step()
    assert net.sessions["edge"].established
    assert restored(exported(net.sessions["edge"])).epochs.number == net.sessions["edge"].epochs.number


def test_last_words_and_a_failure_are_kept() -> None:
    of = session()
    of.endings.last_words |= {3: Refuse(3, Code.FULL, "full"), 4: Abort(4, Code.OTHER, "x" * 999)}
    of.fail("a test", 1.0)
    after = restored(exported(of))
    assert after.failed == "a test" and after.epochs.phase is Phase.FAILED
    assert after.endings.last_words == {3: Refuse(3, Code.FULL, "full"), 4: Abort(4, Code.OTHER, "x" * 256)}
    assert after.deadline() is None


def test_a_stream_that_no_session_carries_is_restored() -> None:
    of = Stream(opener=True, service="web", client="192.0.2.1:7", destination="192.0.2.2:80", budget=budget())
    of.write(b"early")
    after = restore_stream(iter(list(moved(export_stream(of, payload=True)))), budget())
    assert (after.service, after.client, after.destination) == ("web", "192.0.2.1:7", "192.0.2.2:80")
    assert bytes_of(after) == (b"early", b"") and after.host is None and after.room > 0


def test_the_grace_goes_on_counting() -> None:
    net = eventful()
    of = net.sessions["provider"]
    due = of.deadline()
    after = restored(exported(of, payload=True), opener=False)
    assert due is not None and after.deadline() == due
    after.tick(due)
    assert not after.streams and {notice.kind for notice in after.notices} == {Kind.ABORTED}


def test_a_smaller_budget_is_used_up_until_the_bytes_are_gone() -> None:
    net = Network(1)
    net.connect("a")
    client = net.open()
    for _ in range(4):
        net.step()
    client.write(64 * KIB)
    net.cut("a")
    after = restored(exported(net.sessions["edge"], payload=True), total_bytes=MIB // 2)
    (stream,) = after.streams.values()
    assert stream.room == 0 and stream.send.pool_used_bytes > 0
    stream.abort("a test")
    assert after._budget.pool_used_bytes == 0


def test_a_process_that_exports_holds_its_bytes_once() -> None:
    """16 MiB are held by one session; the new process reads them from where this one has written them."""
    memory = Budget(total_bytes=256 * MIB, max_streams=64)
    of = Stream(opener=True, service="web", client="", budget=memory)
    of.send.limit = 16 * MIB
    tracemalloc.start()
    try:
        for _ in range(16):
            of.write(bytes(MIB))
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        size = sum(len(cbor2.dumps(item)) for item in moved(export_stream(of, payload=True)))
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 16 * MIB
    assert peak < before + 3 * MIB and after < before - 15 * MIB


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("version", -1, "version -1 in the export, expected 0 to 9223372036854775807"),
        ("version", True, "version in the export is of the type bool, expected int"),
        ("failed", 1, "failed in the export is of the type int, expected str"),
        ("lost_at", 1, "lost_at in the export is of the type int, expected float"),
        ("counters", None, "NoneType in the export, expected a map"),
        ("last_words", [[1, True, 99, "no"]], "malformed last word in the export"),
        ("state", "closed", "state 'closed' in the export, expected one of opening, dialing, open, resetting, reset"),
        ("opener", False, "stream 1 in the export was opened at the other end"),
        ("send_chunks", 100, "dict in the export, expected 1 to 1048576 bytes"),
        ("streams", 100, "NoneType in the export, expected a map"),
    ],
)
def test_a_damaged_export_is_rejected(name: str, value: object, error: str) -> None:
    items = exported(eventful().sessions["edge"], payload=True)
    for item in items:
        if isinstance(item, dict) and name in item:
            item[name] = value
            break
    with pytest.raises(ExportError) as caught:
        restored(items)
    assert str(caught.value) == error


@pytest.mark.parametrize("chunk", [b"", bytes(MAX_PAYLOAD + 1)])
def test_a_chunk_is_bounded(chunk: bytes) -> None:
    items = exported(eventful().sessions["edge"], payload=True)
    items[next(index for index, item in enumerate(items) if isinstance(item, bytes))] = chunk
    with pytest.raises(ExportError, match="bytes in the export, expected 1 to 1048576 bytes"):
        restored(items)


def test_a_newer_version_may_add_fields() -> None:
    items = exported(eventful().sessions["edge"], payload=True)
    for item in items:
        if isinstance(item, dict):
            item["from a later version"] = 1
    assert restored(items).streams


GOLDEN = """
ac6776657273696f6e01666661696c6564f668647261696e696e67f46d706565725f647261696e696e67f56565706f6368026767726163
655f73fb404e000000000000676c6f73745f6174fb3fb1eb851eb851ec676e6578745f6964036b706565725f77696e646f771940006863
6f756e74657273a5676f757461676573016e7265706c617965645f627974657300666f70656e6564026a73656e745f6279746573006e72
656365697665645f6279746573006a6c6173745f776f726473818402f40064676f6e656773747265616d7301ad62696401666f70656e65
72f567736572766963656764656661756c7466636c69656e7464746573746b64657374696e6174696f6e60657374617465646f70656e68
6163636570746564f56a656e645f726561736f6e60696f70656e65645f6174f66473656e64a76561636b6564006473656e740b63656e64
0b656c696d69741a0001000063656f66f468656f665f73656e74f46866696e6973686564f46772656365697665a6687265636569766564
056964656c697665726564036561636b656400656c696d69741a0001000063656f66f46d656f665f64656c697665726564f46b73656e64
5f6368756e6b73026e726563656976655f6368756e6b730149001f3e5d7c9bbad9f9421d3c426483
"""
"""What format 1 (`process.handover.FORMAT`) was when it was new: a session, a stream, three chunks, an end."""


def test_an_export_of_format_1_can_still_be_restored() -> None:
    data = io.BytesIO(bytes.fromhex(GOLDEN))
    items = [cbor2.load(data) for _ in range(5)]
    after = restored(items)
    (stream,) = after.streams.values()
    assert bytes_of(stream) == (bytes.fromhex("001f3e5d7c9bbad9f91d3c"), bytes.fromhex("6483"))
    added = {"number": 1, "outages_before": 0, "end_code": "done"}
    assert exported(after) == [items[0], items[1] | added | {"send_chunks": 0, "receive_chunks": 0}]


def test_fields_are_checked() -> None:
    fields = Fields({"bytes": b"x", "count": 1, "none": None, 2: "ignored", "items": [1]})
    assert fields.items("items") == fields.items_or_none("items") == [1] and fields.items_or_none("none") is None
    assert fields.data("bytes") == fields.data_or_none("bytes") == b"x"
    assert fields.count_or_none("count") == 1
    assert fields.data_or_none("none") is None and fields.count_or_none("none") is None
    assert fields.by_text() == {"bytes": b"x", "count": 1, "none": None, "items": [1]}
    assert fields.fields_or_none("absent") is None
    assert fields.text_or_none("none") is None and fields.seconds_or_none("absent") is None


def test_an_endpoint_is_checked() -> None:
    fields = Fields({"client": "[2001:db8::1]:80", "other": "nobody:80"})
    assert fields.endpoint("client") == Endpoint("2001:db8::1", 80)
    with pytest.raises(ExportError, match="other 'nobody:80' in the export, expected an address and a port"):
        fields.endpoint("other")
