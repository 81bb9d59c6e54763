"""What the carrier over NATS decides without NATS: subjects, payloads, who is there, and keys as NATS knows them."""

import base64
import os

import cbor2
import nkeys  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from brokers import KeyPair, PeerName, Role
from brokers.errors import BadMessage, BadName
from brokers.nats import subjects
from brokers.nats.frames import pack, unpack
from brokers.nats.nkey import _crc16, public_nkey, sign
from brokers.nats.roster import MAX_OF_NAME, Down, Roster, Up
from brokers.nats.subjects import HERE, SignOfLife, Station
from goreprox.keys.claims import NoClaims
from tests.support.nats import matches

LEASE_S = 4.0
KEY = "ab" * 32


def station(number: int = 1, *, name: str = "a.b", incarnation: bytes = bytes(16), key: str = KEY) -> Station:
    return Station(PeerName(Role.PROVIDER, name, incarnation), key, number)


def here(**attributes: object) -> bytes:
    return cbor2.dumps([False, attributes])


def up(roster: Roster, at: Station, now: float = 0.0, **attributes: object) -> Up:
    event = roster.heard(at.hi(HERE), here(**attributes), now)
    assert isinstance(event, Up)
    return event


# -- subjects


@given(
    st.sampled_from(Role), st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True), st.binary(min_size=16, max_size=16)
)
def test_a_sign_of_life_says_who_gives_it(role: Role, name: str, incarnation: bytes) -> None:
    who = Station(PeerName(role, name, incarnation), KEY, 77)
    assert SignOfLife.parse(who.hi("any")) == SignOfLife(who, "any")


def test_a_key_may_do_what_its_peers_need() -> None:
    edge, provider = Station(PeerName(Role.EDGE, "e.1", bytes(16)), KEY, 1), station()
    allowed = subjects.permissions(Role.PROVIDER, "a.b", KEY, ["service:web"])
    for subject in (
        provider.message_to(edge.place),
        provider.hi("here"),
        provider.hi("bye"),
        provider.hi("service:web"),
    ):
        assert any(matches(pattern, subject) for pattern in allowed.publish), subject
    others = (edge.message_to(provider.place), edge.hi("here"), provider.gone(edge.place), f"{provider.inbox}.x.y")
    for subject in (*others, subjects.revoked(Role.EDGE, "e.1")):
        assert any(matches(pattern, subject) for pattern in allowed.subscribe), subject
    assert {each.replace(">", "x") for each in provider.subscriptions if "hi" not in each}
    assert subjects.allowed_claims(provider, allowed.publish) == {"service:web"}


@pytest.mark.parametrize(
    "other",
    [
        station(name="other"),
        station(name="a.b.c"),
        station(name="a~b".replace("~", "-")),
        station(key="cd" * 32),
        Station(PeerName(Role.EDGE, "a.b", bytes(16)), KEY, 1),
    ],
)
def test_a_key_may_not_speak_as_another(other: Station) -> None:
    edge = Station(PeerName(Role.EDGE, "edge", bytes(16)), KEY, 1)
    allowed = subjects.permissions(Role.PROVIDER, "a.b", KEY, ["any"]).publish
    said = [other.hi(claim) for claim in ("here", "bye", "any")]
    if other.key == KEY:
        said.append(other.message_to(edge.place))
    for subject in said:
        assert not any(matches(pattern, subject) for pattern in allowed), subject


def test_a_key_may_not_speak_to_its_own_role_claim_more_than_it_has_or_hear_what_is_for_others() -> None:
    allowed = subjects.permissions(Role.PROVIDER, "a.b", KEY, ["service:web"])
    other = station(name="other")
    for subject in (
        station().message_to(other.place),
        station().hi("service:ssh"),
        station().hi("any"),
        subjects.revoked(Role.EDGE, "e"),
        other.gone(station().place),
    ):
        assert not any(matches(pattern, subject) for pattern in allowed.publish), subject
    edge = Station(PeerName(Role.EDGE, "e", bytes(16)), KEY, 1)
    for subject in (edge.message_to(other.place), other.hi("here"), other.gone(edge.place), f"{other.inbox}.x"):
        assert not any(matches(pattern, subject) for pattern in allowed.subscribe), subject


@pytest.mark.parametrize("text", ["", "a b", "a*b>", "a~b", "a+b", "a\nb", "é", "x" * 301])
def test_what_could_be_read_in_two_ways_is_no_token(text: str) -> None:
    with pytest.raises(BadName):
        subjects.token(text)


@pytest.mark.parametrize("text", ["http://*.a.example", "tcp://1-2", "a.b_c-d"])
def test_a_token_has_neither_dots_nor_wildcards_and_can_be_read_again(text: str) -> None:
    assert not {".", "*", ">"} & set(subjects.token(text)) and subjects.text_of(subjects.token(text)) == text


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "goreprox.hi",
        "goreprox.hi.x.a.-.0.here",
        f"goreprox.hi.p.a.{KEY}.{'0' * 32}.here",
        "goreprox.hi.p.a.zz.b.c",
        f"goreprox.hi.p.{'n' * 65}.-.{'0' * 32}-1.here",
        f"goreprox.hi.p.a.-.{'0' * 32}-1.here.more",
    ],
)
def test_other_subjects_are_malformed(subject: str) -> None:
    with pytest.raises(BadMessage):
        SignOfLife.parse(subject)


# -- payloads


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=130))
def test_frames_arrive_as_they_were(frames: list[bytes]) -> None:
    assert [bytes(frame) for frame in unpack(b"".join(pack(frames)))] == frames


@given(st.binary(max_size=64))
def test_other_payloads_are_malformed_or_have_all_their_bytes_in_frames(payload: bytes) -> None:
    try:
        frames = unpack(payload)
    except BadMessage:
        return
    assert b"".join(pack(frames)) == payload


@pytest.mark.parametrize("count", [0, 131])
def test_too_few_or_too_many_frames_are_malformed(count: int) -> None:
    with pytest.raises(BadMessage):
        unpack(b"".join(pack([b""] * count)))


# -- who is there


def test_a_peer_is_up_until_its_lease_is_over() -> None:
    roster = Roster(LEASE_S, NoClaims())
    first = up(roster, station(), services=["web"])
    assert first.info.attributes == {"services": ["web"]} and roster.place_of(first.info.name.id) == station().place
    assert up(roster, station(), 3.0).info.epoch == first.info.epoch
    assert [roster.expire(now) for now in (4.0, 7.0)] == [[], []]
    assert roster.expire(7.1) == [Down(first.info.name.id, "no sign of life")]
    assert roster.at(station().place) is None
    assert up(roster, station(), 8.0).info.epoch > first.info.epoch


def test_a_later_connection_takes_the_place_of_an_earlier_one_which_counts_no_more() -> None:
    roster = Roster(LEASE_S, NoClaims())
    first = up(roster, station(1))
    second = up(roster, station(2))
    assert second.info.epoch > first.info.epoch
    assert roster.at(station(1).place) is None and roster.at(station(2).place) == first.info.name.id
    assert roster.heard(station(1).hi(HERE), here(), 0.0) is None
    assert roster.heard(station(1).hi("bye"), b"", 0.0) is None and roster.nobody_at(station(1).place) is None
    assert roster.heard(station(2).hi("bye"), b"", 0.0) == Down(first.info.name.id, "left")


@pytest.mark.parametrize("end", ["bye", "silence", "revocation"])
def test_a_peer_whose_later_connection_is_never_there_is_down(end: str) -> None:
    roster = Roster(LEASE_S, NoClaims())
    peer_id = up(roster, station(1)).info.name.id
    for number in (2, 3):
        assert roster.heard(station(number).hi("claim"), b"", 1.0) is None
        assert roster.place_of(peer_id) is None, "what is sent now would be lost"
    if end == "bye":
        assert roster.heard(station(3).hi("bye"), b"", 1.0) == Down(peer_id, "left")
    elif end == "silence":
        roster.expire(1.0)
        assert roster.expire(1.0 + LEASE_S) == []
        assert roster.expire(1.1 + LEASE_S) == [Down(peer_id, "no sign of life")]
    else:
        assert roster.leave(peer_id, "revoked") == Down(peer_id, "revoked")
    assert roster.expire(1.2 + LEASE_S) == []


def test_an_incarnation_belongs_to_the_key_that_had_it_first() -> None:
    roster = Roster(LEASE_S, NoClaims())
    up(roster, station(1))
    for thief in (station(2, key="cd" * 32), station(2, name="thief")):
        assert roster.heard(thief.hi(HERE), here(), 0.0) is None
    assert roster.at(station(1).place) is not None


def test_peers_of_one_name_leave_room_for_others() -> None:
    roster = Roster(LEASE_S, NoClaims())
    for _ in range(MAX_OF_NAME):
        up(roster, station(incarnation=os.urandom(16)))
    assert roster.heard(station(incarnation=os.urandom(16)).hi(HERE), here(), 0.0) is None
    up(roster, station(name="other", incarnation=os.urandom(16)))


def test_who_has_only_claimed_something_is_not_there_yet_and_is_forgotten_in_time() -> None:
    roster = Roster(LEASE_S, NoClaims())
    assert roster.heard(station().hi("any"), b"", 0.0) is None
    assert roster.at(station().place) is None and roster.place_of(station().name.id) is None
    assert roster.expire(3.0) == [] and roster.expire(6.0) == []
    assert not roster._peers and not roster._by_place and not roster._of_name


@pytest.mark.parametrize("payload", [b"", b"\xff", cbor2.dumps([1, {}]), cbor2.dumps([True, {1: 2}]), bytes(5000)])
def test_a_malformed_sign_of_life_is_none(payload: bytes) -> None:
    with pytest.raises(BadMessage):
        Roster(LEASE_S, NoClaims()).heard(station().hi(HERE), payload, 0.0)


# -- keys


def test_nats_knows_a_peer_by_the_key_that_it_has_on_links() -> None:
    for _ in range(20):  # half of the keys are to be negated
        keys = KeyPair.generate()
        nkey = public_nkey(keys.public)
        raw = base64.b32decode(nkey + "=" * (-len(nkey) % 8))
        assert nkey[0] == "U" and len(nkey) == 56
        VerifyKey(raw[1:33]).verify(b"nonce", sign(keys, b"nonce"))


def test_an_nkey_is_written_as_the_library_of_nats_writes_it() -> None:
    other = nkeys.from_seed(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)).public_key
    raw = base64.b32decode(other + b"=" * (-len(other) % 8))
    assert raw[0] == 20 << 3 and _crc16(raw[:33]) == int.from_bytes(raw[33:], "little")
