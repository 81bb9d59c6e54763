"""Batches as bytes: golden vectors, round trips, and everything that a hostile peer may send instead."""

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.protocol import wire
from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.events import (
    Abort,
    Accept,
    Ack,
    Batch,
    Code,
    Data,
    Drain,
    Eof,
    Event,
    Goodbye,
    Live,
    Open,
    Probe,
    Refuse,
    Reset,
    Resume,
    Served,
)
from goreprox.protocol.limits import (
    MAX_EVENTS,
    MAX_HEAD,
    MAX_OFFSET,
    MAX_PAYLOAD,
    MAX_RAW_FRAMES,
    MAX_TEXT,
    RAW_PAYLOAD,
    RESUME_PAGE,
)

# Version 1, epoch 6, message 2, 3 received: `85 01 06 02 03 81`, then the event.
GOLDEN: list[tuple[Event, str]] = [
    (Data(1, 2, b"abc"), "8501060203818400010243616263"),
    (Ack(1, 2, 3), "8501060203818401010203"),
    (
        Open(1, "web", "10.0.0.1:5", "[::1]:80", 65536),
        "850106020381860201637765626a31302e302e302e313a35685b3a3a315d3a38301a00010000",
    ),
    (Accept(1, 65536), "8501060203818303011a00010000"),
    (Refuse(1, Code.FULL, "no"), "85010602038184040102626e6f"),
    (Eof(1, 1000), "8501060203818305011903e8"),
    (Reset(1, 5, "rst"), "8501060203818406010563727374"),
    (Abort(1, Code.GONE, "gone"), "8501060203818407010564676f6e65"),
    (
        Resume(60.0, 16384, 8, True, (Live(7, True, 1000, 1001, 66536, True),)),
        "8501060203818608fb404e00000000000019400008f5818607f51903e81903e91a000103e8f5",
    ),
    (Drain(), "8501060203818109"),
    (Goodbye("bye"), "850106020381820a63627965"),
    (Probe(), "850106020381810b"),
    (Served("tcp://20003@laptop", "", "taken"), "850106020381840c727463703a2f2f3230303033406c6170746f70606574616b656e"),
]


@pytest.mark.parametrize(("event", "expected"), GOLDEN)
def test_golden_vectors(event: Event, expected: str) -> None:
    batch = Batch(6, 2, 3, (event,))
    frames = wire.encode(batch, version=1)
    assert [bytes(frame).hex() for frame in frames] == [expected]
    assert wire.decode([bytes.fromhex(expected)]) == (1, batch)


def test_a_long_payload_is_a_frame_of_its_own_and_not_copied() -> None:
    payload = bytes(RAW_PAYLOAD)
    frames = wire.encode(Batch(6, 2, 3, (Data(1, 2, payload),)), version=1)
    assert bytes(frames[0]).hex() == "85010602038184000102194000"
    assert frames[1] is payload
    event = wire.decode(frames)[1].events[0]
    assert isinstance(event, Data)
    assert event.payload is payload


def test_raw_frames_follow_the_order_of_their_events() -> None:
    payloads = [bytes([i]) * (RAW_PAYLOAD + i) for i in range(3)]
    events = tuple(Data(i, 0, payload) for i, payload in enumerate(payloads))
    frames = wire.encode(Batch(1, 0, 0, (*events, Ack(1, 2, 3))), version=1)
    assert frames[1:] == payloads
    assert wire.decode(frames)[1].events == (*events, Ack(1, 2, 3))


def test_a_view_is_encoded_as_its_bytes() -> None:
    frames = wire.encode(Batch(1, 0, 0, (Data(1, 0, memoryview(b"abc")[1:]),)), version=1)
    assert wire.decode(frames)[1].events == (Data(1, 0, b"bc"),)


def test_long_texts_are_cut() -> None:
    long = "x" * (MAX_TEXT + 1)
    events = (
        Open(1, "s", long, long, 0),
        Refuse(1, Code.OTHER, long),
        Reset(1, 0, long),
        Abort(1, Code.OTHER, long),
        Goodbye(long),
    )
    cut = long[:MAX_TEXT]
    assert wire.decode(wire.encode(Batch(1, 0, 0, events), version=1))[1].events == (
        Open(1, "s", cut, cut, 0),
        Refuse(1, Code.OTHER, cut),
        Reset(1, 0, cut),
        Abort(1, Code.OTHER, cut),
        Goodbye(cut),
    )


UINT = st.integers(0, MAX_OFFSET)
TEXT = st.text(max_size=MAX_TEXT)
CODE = st.sampled_from(Code)
PAYLOAD = st.binary(min_size=1, max_size=50) | st.integers(RAW_PAYLOAD - 2, RAW_PAYLOAD + 2).map(bytes)
LIVE = st.builds(Live, UINT, st.booleans(), UINT, UINT, UINT, st.booleans())
EVENT: st.SearchStrategy[Event] = st.one_of(
    st.builds(Data, UINT, UINT, PAYLOAD),
    st.builds(Ack, UINT, UINT, UINT),
    st.builds(Open, UINT, TEXT, TEXT, TEXT, UINT),
    st.builds(Accept, UINT, UINT),
    st.builds(Refuse, UINT, CODE, TEXT),
    st.builds(Eof, UINT, UINT),
    st.builds(Reset, UINT, UINT, TEXT),
    st.builds(Abort, UINT, CODE, TEXT),
    st.builds(Resume, st.floats(0, wire.MAX_GRACE_S), UINT, UINT, st.booleans(), st.lists(LIVE, max_size=3).map(tuple)),
    st.builds(Drain),
    st.builds(Goodbye, TEXT),
    st.builds(Probe),
    st.builds(Served, TEXT, TEXT, TEXT),
)


@given(st.builds(Batch, UINT, UINT, UINT, st.lists(EVENT, max_size=5).map(tuple)))
def test_what_is_encoded_is_decoded(batch: Batch) -> None:
    assert wire.decode(wire.encode(batch, version=1)) == (1, batch)


def test_an_unknown_code_counts_as_other() -> None:
    _, batch = wire.decode([cbor2.dumps([1, 2, 3, 4, [[wire.REFUSE, 1, 99, "because"]]])])
    assert batch.events == (Refuse(1, Code.OTHER, "because"),)


def test_another_version_is_named_whatever_it_looks_like() -> None:
    for later in ([2], [2, "six", {}], [MAX_OFFSET, 1, 2, 3, [[99]]], [0, 1, 2, 3, []]):
        with pytest.raises(RemoteProtocolError, match=f"protocol version {later[0]}, expected 1 to 1"):
            wire.decode([cbor2.dumps(later)])


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_noise_is_rejected_or_a_batch(frames: list[bytes]) -> None:
    try:
        wire.decode(frames)
    except RemoteProtocolError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats() | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=12,
)


@given(st.integers(-1, 13), st.lists(JSON, max_size=6))
def test_events_with_any_fields_are_rejected_or_decoded(kind: int, fields: list[object]) -> None:
    try:
        wire.decode([cbor2.dumps([1, 2, 3, 4, [[kind, *fields]]])])
    except RemoteProtocolError:
        return


@given(st.sampled_from(GOLDEN), st.data())
def test_one_changed_byte_is_rejected_or_decoded(golden: tuple[Event, str], data: st.DataObject) -> None:
    head = bytearray.fromhex(golden[1])
    head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    try:
        wire.decode([bytes(head)])
    except RemoteProtocolError:
        return


@given(st.sampled_from(GOLDEN), st.data())
def test_a_truncated_message_is_rejected(golden: tuple[Event, str], data: st.DataObject) -> None:
    head = bytes.fromhex(golden[1])
    with pytest.raises(RemoteProtocolError):
        wire.decode([head[: data.draw(st.integers(0, len(head) - 1))]])


@pytest.mark.parametrize(
    "head",
    [
        None,
        1,
        "text",
        {},
        [],
        [1, 2, 3, 4],
        [1, 2, 3, 4, [], 6],
        [1, 2, 3, 4, None],
        [1, 2, 3, 4, {}],
        [True, 2, 3, 4, []],
        [1, True, 3, 4, []],
        [1, 2, False, 4, []],
        [1, 2, 3, True, []],
        [1, -1, 3, 4, []],
        [1, 2, 3.0, 4, []],
        [1, 2, 3, MAX_OFFSET + 1, []],
        [1, 2, 3, "4", []],
    ],
)
def test_what_is_not_a_batch_is_rejected(head: object) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.decode([cbor2.dumps(head)])


LIVE_FIELDS = [1, True, 2, 3, 4, False]


@pytest.mark.parametrize(
    "event",
    [
        None,
        1,
        {},
        [],
        [None],
        ["1"],
        [True, 1, 2, 3],
        [1.0, 1, 2, 3],
        [-1],
        [12],
        [2**63],
        [wire.DATA],
        [wire.DATA, 1, 2],
        [wire.DATA, 1, 2, b"x", 4],
        [wire.DATA, 1, 2, b""],
        [wire.DATA, 1, 2, bytes(RAW_PAYLOAD)],
        [wire.DATA, 1, 2, "x"],
        [wire.DATA, 1, 2, None],
        [wire.DATA, 1, 2, True],
        [wire.DATA, 1, 2, -1],
        [wire.DATA, 1, 2, RAW_PAYLOAD],
        [wire.DATA, True, 2, b"x"],
        [wire.DATA, 1, -2, b"x"],
        [wire.ACK, 1, 2],
        [wire.ACK, 1, 2, 3, 4],
        [wire.ACK, 1, True, 3],
        [wire.OPEN, 1, "s", "c", 1],
        [wire.OPEN, 1, "s" * (MAX_TEXT + 1), "c", "d", 1],
        [wire.SERVED, "s", "at", "r" * (MAX_TEXT + 1)],
        [wire.SERVED, "s", "at"],
        [wire.OPEN, 1, "s", "c" * (MAX_TEXT + 1), "d", 1],
        [wire.OPEN, 1, "s", "c", "d" * (MAX_TEXT + 1), 1],
        [wire.OPEN, 1, b"s", "c", "d", 1],
        [wire.OPEN, 1, "s", None, "d", 1],
        [wire.OPEN, 1, "s", "c", None, 1],
        [wire.ACCEPT, 1],
        [wire.ACCEPT, 1, 2.0],
        [wire.REFUSE, 1],
        [wire.REFUSE, 1, "x"],
        [wire.REFUSE, 1, 2, 3],
        [wire.REFUSE, 1, "2", "x"],
        [wire.REFUSE, 1, -1, "x"],
        [wire.EOF, 1],
        [wire.EOF, 1, MAX_OFFSET + 1],
        [wire.RESET, 1, 2],
        [wire.RESET, 1, 2, b"x"],
        [wire.ABORT, 1],
        [wire.ABORT, 1, "x"],
        [wire.ABORT, 1, 0, "x" * (MAX_TEXT + 1)],
        [wire.RESUME],
        [wire.RESUME, 60, 1, 1, True, []],
        [wire.RESUME, True, 1, 1, True, []],
        [wire.RESUME, "60", 1, 1, True, []],
        [wire.RESUME, -1.0, 1, 1, True, []],
        [wire.RESUME, float("nan"), 1, 1, True, []],
        [wire.RESUME, float("inf"), 1, 1, True, []],
        [wire.RESUME, wire.MAX_GRACE_S + 1, 1, 1, True, []],
        [wire.RESUME, 60.0, 1, 1, 1, []],
        [wire.RESUME, 60.0, 1, 1, None, []],
        [wire.RESUME, 60.0, 1, 1, True, None],
        [wire.RESUME, 60.0, 1, 1, True, [LIVE_FIELDS] * (RESUME_PAGE + 1)],
        [wire.RESUME, 60.0, 1, 1, True, [1]],
        [wire.RESUME, 60.0, 1, 1, True, [LIVE_FIELDS[:5]]],
        [wire.RESUME, 60.0, 1, 1, True, [[*LIVE_FIELDS, 1]]],
        [wire.RESUME, 60.0, 1, 1, True, [[1, 1, 2, 3, 4, False]]],
        [wire.RESUME, 60.0, 1, 1, True, [[1, True, 2, 3, 4, 0]]],
        [wire.RESUME, 60.0, 1, 1, True, [[True, True, 2, 3, 4, False]]],
        [wire.DRAIN, 1],
        [wire.GOODBYE],
        [wire.GOODBYE, 1],
        [wire.PROBE, 1],
    ],
)
def test_what_is_not_an_event_is_rejected(event: object) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.decode([cbor2.dumps([1, 2, 3, 4, [event]])])


def test_the_message_names_what_was_there_and_what_was_expected() -> None:
    with pytest.raises(RemoteProtocolError, match="bool 'True', expected an unsigned integer"):
        wire.decode([cbor2.dumps([True, 2, 3, 4, []])])
    with pytest.raises(RemoteProtocolError, match="NoneType, expected an unsigned integer"):
        wire.decode([cbor2.dumps([None, 2, 3, 4, []])])
    with pytest.raises(RemoteProtocolError, match="event of kind 3 with 1 fields"):
        wire.decode([cbor2.dumps([1, 2, 3, 4, [[wire.ACCEPT, 1]]])])


@pytest.mark.parametrize(
    "payload",
    [
        "c11a514b67b0",  # a date
        "c249010000000000000000",  # a big number
        "c349010000000000000000",
        "c48221196ab3",  # a decimal fraction
        "d81903",  # a string reference
        "d81c80",  # a shared value
        "d81d00",
        "d81e820102",  # a fraction
        "d82363612b62",  # a regular expression
        "d8256161",
        "d9010080",
        "d9010280",  # a set
        "d9d9f701",  # self-described CBOR
        "d9ffff01",  # unknown
        "db00000000ffffffff01",
    ],
)
def test_tags_are_rejected(payload: str) -> None:
    with pytest.raises(RemoteProtocolError, match="CBOR"):
        wire.decode([bytes.fromhex("8501020304" + "81" + payload)])


@pytest.mark.parametrize(
    "head",
    [
        "",
        "ff",
        "9f0102030480ff",  # a list without a length
        "85010203049fff",
        "8501020304818400017f6161ff02",
        "850102030481840001025f4161ff",
        "a201000100",  # a key twice
        "85010203",  # cut off
        "9bffffffffffffffff",  # a length beyond all memory
        "5bffffffffffffffff",
        "1c",  # reserved
        "850102030481830401" + "62c328",  # not UTF-8
    ],
)
def test_malformed_cbor_is_rejected(head: str) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.decode([bytes.fromhex(head)])


def test_deep_nesting_is_rejected() -> None:
    with pytest.raises(RemoteProtocolError, match="malformed CBOR"):
        wire.decode([b"\x81" * 1000 + b"\x80"])


def test_the_deepest_batch_is_within_the_depth() -> None:
    resume = Resume(60.0, 1, 1, True, (Live(1, True, 2, 3, 4, False),))
    assert wire.decode(wire.encode(Batch(1, 0, 0, (resume,)), version=1))[1].events == (resume,)


def test_a_full_page_of_streams_fits() -> None:
    lives = tuple(Live(MAX_OFFSET - i, True, MAX_OFFSET, MAX_OFFSET, MAX_OFFSET, True) for i in range(RESUME_PAGE))
    resume = Resume(60.0, 1, MAX_OFFSET, False, lives)
    frames = wire.encode(Batch(1, 0, 0, (resume,)), version=1)
    assert len(frames[0]) <= RESUME_PAGE * 40
    assert wire.decode(frames)[1].events == (resume,)


def test_events_are_counted_before_they_are_read() -> None:
    events = [Probe()] * MAX_EVENTS
    assert len(wire.decode(wire.encode(Batch(1, 0, 0, tuple(events)), version=1))[1].events) == MAX_EVENTS
    with pytest.raises(RemoteProtocolError, match=f"{MAX_EVENTS + 1} events, expected at most {MAX_EVENTS}"):
        wire.decode(wire.encode(Batch(1, 0, 0, (*events, Probe())), version=1))


def test_a_head_that_is_too_long_is_rejected_before_it_is_decoded() -> None:
    with pytest.raises(RemoteProtocolError, match=f"CBOR of {MAX_HEAD + 1} bytes"):
        wire.decode([b"\xff" * (MAX_HEAD + 1)])


@pytest.mark.parametrize("count", [0, MAX_RAW_FRAMES + 2])
def test_a_wrong_number_of_frames_is_rejected(count: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{count} frames, expected 1 to {MAX_RAW_FRAMES + 1}"):
        wire.decode([b""] * count)


def test_an_unannounced_frame_is_rejected() -> None:
    frames = wire.encode(Batch(1, 0, 0, (Data(1, 0, bytes(RAW_PAYLOAD)),)), version=1)
    with pytest.raises(RemoteProtocolError, match="more frames than the events announce"):
        wire.decode([*frames, b"x"])


@pytest.mark.parametrize(
    ("announced", "actual"),
    [
        (RAW_PAYLOAD, RAW_PAYLOAD + 1),
        (RAW_PAYLOAD + 1, RAW_PAYLOAD),
        (RAW_PAYLOAD - 1, RAW_PAYLOAD - 1),
        (0, 0),
        (MAX_PAYLOAD + 1, MAX_PAYLOAD + 1),
    ],
)
def test_a_raw_frame_of_a_wrong_length_is_rejected(announced: int, actual: int) -> None:
    head = cbor2.dumps([1, 2, 3, 4, [[wire.DATA, 1, 2, announced]]])
    with pytest.raises(RemoteProtocolError, match=f"a payload of {announced} bytes"):
        wire.decode([head, bytes(actual)])


@pytest.mark.parametrize("announced", [float(RAW_PAYLOAD), "16384", None, [RAW_PAYLOAD], True])
def test_the_length_of_a_raw_frame_is_an_integer(announced: object) -> None:
    head = cbor2.dumps([1, 2, 3, 4, [[wire.DATA, 1, 2, announced]]])
    with pytest.raises(RemoteProtocolError, match="expected an unsigned integer"):
        wire.decode([head, bytes(RAW_PAYLOAD)])
