"""The switch, message by message: who hears what of whom."""

from collections.abc import Hashable, Mapping

import pytest

from brokers import BadMessage, Buffer, PeerInfo, PeerName, Role
from brokers.envelope import (
    CLOSING,
    CONTROL,
    FABRIC_VERSION,
    MAX_FRAMES,
    REVOKED,
    Announce,
    Control,
    Down,
    Hello,
    Leave,
    Refused,
    Renew,
    Renewed,
    Up,
    Welcome,
    control,
    parse_control,
)
from brokers.interest import INTEREST, INTEREST_BYTES, interest_attribute, interest_in
from brokers.switch import FEW, LIST_BYTES, NO_HELLO, Certified, Objection, Output, Switch

LEASE_S = 6.0


class Broker:
    """A switch that speaks in controls, and peers whose keys are their names."""

    def __init__(
        self,
        max_peers: int = 10,
        objection: Objection = lambda _key, _attributes: None,
        certified: Certified = lambda _key, attributes: attributes,
    ) -> None:
        self.refused: list[tuple[str, str]] = []
        self.switch = Switch(
            lease_s=LEASE_S,
            max_peers=max_peers,
            objection=objection,
            certified=certified,
            refused=self._note_refusal,
        )

    def _note_refusal(self, _: Hashable, who: PeerName, reason: str) -> None:
        self.refused.append((who.name, reason))

    def tell(self, key: str, message: Control, now: float = 0.0) -> list[tuple[Hashable, Control]]:
        return controls(self.switch.receive(key, name(key), control(message), now))

    def hello(self, key: str, attributes: Mapping[str, object] | None = None, now: float = 0.0) -> int:
        """Say hello and return the epoch."""
        (_, welcome), *_ = self.tell(key, Hello(1, 1, 1, attributes or {}), now)
        assert isinstance(welcome, Welcome)
        return welcome.epoch

    def send(self, key: str, to: str, *body: Buffer, now: float = 0.0) -> list[Output]:
        return self.switch.receive(key, name(key), [name(to).id, *body], now)


def name(key: str) -> PeerName:
    """Keys are `e1`, `p2`, …: role and number. What follows a slash tells routes of the same peer apart."""
    return PeerName(Role(key[:1].encode()), key[:2], key[:2].encode() * 8)


def up(key: str, epoch: int, attributes: Mapping[str, object] | None = None) -> Up:
    peer = name(key)
    return Up(peer.role.value, peer.name, peer.incarnation, epoch, attributes or {})


def controls(outputs: list[Output]) -> list[tuple[Hashable, Control]]:
    return [(key, parse_control(frames)) for key, frames in outputs]


def test_a_hello_gets_welcome_and_peer_list_and_is_announced_to_the_other_role() -> None:
    broker = Broker()
    assert broker.tell("e1", Hello(1, 1, 5, {})) == [("e1", Welcome(1, 5, 1))]
    assert broker.tell("e2", Hello(1, 1, 5, {})) == [("e2", Welcome(1, 5, 2))], "edges do not see edges"
    assert broker.tell("p1", Hello(1, 1, 9, {"grace_s": 60})) == [
        ("p1", Welcome(1, 9, 3)),
        ("p1", up("e1", 1)),
        ("p1", up("e2", 2)),
        ("e1", up("p1", 3, {"grace_s": 60})),
        ("e2", up("p1", 3, {"grace_s": 60})),
    ]
    assert broker.switch.peers == [
        PeerInfo(name("e1"), 1, {}),
        PeerInfo(name("e2"), 2, {}),
        PeerInfo(name("p1"), 3, {"grace_s": 60}),
    ]


def test_a_second_hello_begins_a_new_epoch() -> None:
    broker = Broker()
    broker.hello("e1")
    first = broker.hello("p1")
    response = broker.tell("p1", Hello(1, 1, 2, {}))
    assert response == [("p1", Welcome(1, 2, first + 1)), ("p1", up("e1", 1)), ("e1", up("p1", first + 1))]
    assert len(broker.switch.peers) == 2


def test_a_message_is_forwarded_with_its_source() -> None:
    broker = Broker()
    broker.hello("e1")
    broker.hello("p1")
    assert broker.send("e1", "p1", b"head", b"payload") == [("p1", [name("e1").id, b"head", b"payload"])]
    assert broker.send("p1", "e1", b"back") == [("e1", [name("p1").id, b"back"])]
    assert (broker.switch.messages, broker.switch.dropped) == (2, 0)


def test_messages_before_the_hello_are_dropped() -> None:
    broker = Broker()
    broker.hello("p1")
    assert broker.send("e1", "p1", b"early") == []
    for message in (Renew(), Announce({}), Leave()):
        assert broker.tell("e1", message) == []
    assert broker.switch.dropped == 1


def test_a_message_to_an_unknown_peer_is_dropped_and_counted() -> None:
    broker = Broker()
    broker.hello("e1")
    assert broker.send("e1", "p1", b"x") == []
    assert broker.switch.dropped == 1


@pytest.mark.parametrize(("source", "destination"), [("e1", "e2"), ("p1", "p2"), ("e1", "e1")])
def test_peers_of_one_role_do_not_reach_each_other(source: str, destination: str) -> None:
    broker = Broker()
    for key in ("e1", "e2", "p1", "p2"):
        broker.hello(key)
    assert broker.send(source, destination, b"x") == []
    assert broker.switch.dropped == 1


@pytest.mark.parametrize("count", [0, 1, MAX_FRAMES + 1])
def test_the_number_of_frames_is_bounded(count: int) -> None:
    broker = Broker()
    broker.hello("e1")
    with pytest.raises(BadMessage, match=f"{count} frames"):
        broker.switch.receive("e1", name("e1"), [name("p1").id] * count, 0.0)


def test_new_attributes_are_announced_with_the_same_epoch() -> None:
    broker = Broker()
    broker.hello("e1")
    epoch = broker.hello("p1")
    assert broker.tell("p1", Announce({"draining": True})) == [("e1", up("p1", epoch, {"draining": True}))]
    assert broker.switch.peers[1].attributes == {"draining": True}


def test_a_peer_that_leaves_is_announced_as_down() -> None:
    broker = Broker()
    broker.hello("e1")
    broker.hello("e2")
    epoch = broker.hello("p1")
    down = Down(name("p1").id, epoch, "left")
    assert broker.tell("p1", Leave()) == [("e1", down), ("e2", down)]
    assert broker.send("e1", "p1", b"x") == []
    assert broker.send("p1", "e1", b"x") == []


def test_a_lost_peer_is_announced_once() -> None:
    broker = Broker()
    broker.hello("e1")
    epoch = broker.hello("p1")
    assert controls(broker.switch.lost("p1", "lost")) == [("e1", Down(name("p1").id, epoch, "lost"))]
    assert broker.switch.lost("p1", "lost") == []


def test_a_peer_that_returns_has_a_higher_epoch() -> None:
    broker = Broker()
    first = broker.hello("p1")
    broker.switch.lost("p1", "lost")
    assert broker.hello("p1") > first


def test_any_message_renews_a_lease_and_silence_ends_it() -> None:
    broker = Broker()
    for key in ("e1", "p1", "p2", "p3"):
        broker.hello(key)
    for now in (4.0, 8.0):
        assert broker.tell("e1", Renew(), now) == [("e1", Renewed())]
        broker.send("p1", "e1", b"data", now=now)
        broker.tell("p2", Announce({}), now)
        lost = controls([out for key in broker.switch.expired(now) for out in broker.switch.lost(key, "expired")])
        assert lost == ([] if now == 4.0 else [("e1", Down(name("p3").id, 4, "expired"))])
    assert [peer.name for peer in broker.switch.peers] == [name("e1"), name("p1"), name("p2")]


def test_closing_is_announced_to_every_peer() -> None:
    broker = Broker()
    epochs = {key: broker.hello(key) for key in ("e1", "p1")}
    assert controls(broker.switch.closing()) == [
        (key, Down(name(key).id, epoch, CLOSING)) for key, epoch in epochs.items()
    ]


def test_every_peer_gets_keep_alives() -> None:
    broker = Broker()
    broker.hello("e1")
    broker.hello("p1")
    assert controls(broker.switch.renewals()) == [("e1", Renewed()), ("p1", Renewed())]
    broker.tell("p1", Renew(), now=1.0)
    assert controls(broker.switch.renewals(0.5)) == [("e1", Renewed())], "the other one has had a response"
    assert controls(broker.switch.renewals(1.0)) == [("e1", Renewed()), ("p1", Renewed())]


def test_an_overflow_begins_a_new_epoch_of_the_peer() -> None:
    broker = Broker()
    broker.hello("e1")
    epoch = broker.hello("p1", {"grace_s": 60})
    told = controls(broker.switch.overflow("p1", 0.0))
    assert [item for item in told if item[0] == "e1"] == [
        ("e1", Down(name("p1").id, epoch, "overflow")),
        ("e1", up("p1", epoch + 1, {"grace_s": 60})),
    ]
    assert broker.switch.overflow("p9", 0.0) == []


@pytest.mark.parametrize(("version", "least"), [(0, 0), (3, 2)])
def test_incompatible_versions_are_refused_and_both_are_named(version: int, least: int) -> None:
    broker = Broker()
    ((key, refused),) = broker.tell("p1", Hello(version, least, 1, {}))
    assert key == "p1"
    assert isinstance(refused, Refused)
    assert f"versions {least} to {version}" in refused.reason
    assert "this broker 1 to 1" in refused.reason
    assert broker.refused == [("p1", refused.reason)]
    assert broker.switch.peers == []


def test_a_later_version_that_speaks_ours_gets_ours() -> None:
    assert Broker().tell("p1", Hello(2, 1, 1, {})) == [("p1", Welcome(1, 1, 1))]


def test_a_second_connection_of_an_incarnation_is_refused() -> None:
    broker = Broker()
    broker.hello("e1")
    broker.hello("p1")
    ((key, refused),) = broker.tell("p1/again", Hello(1, 1, 1, {}))
    assert (key, type(refused)) == ("p1/again", Refused)
    assert broker.send("e1", "p1", b"x") == [("p1", [name("e1").id, b"x"])]
    broker.tell("p1", Leave())
    broker.hello("p1/again")


def test_peers_are_bounded_but_known_ones_may_reconnect() -> None:
    broker = Broker(max_peers=2)
    broker.hello("e1")
    broker.hello("p1")
    ((_, refused),) = broker.tell("p2", Hello(1, 1, 1, {}))
    assert isinstance(refused, Refused)
    assert "2 peers" in refused.reason
    broker.hello("p1")
    broker.tell("p1", Leave())
    broker.hello("p2")
    broker.switch.max_peers = 1
    broker.hello("p2")
    assert len(broker.switch.peers) == 2, "those that are up stay"


@pytest.mark.parametrize("message", [Welcome(1, 1, 1), up("p1", 1), Down(b"p", 1, "lost"), Renewed(), Refused("no")])
def test_messages_of_brokers_are_rejected_from_peers(message: Control) -> None:
    broker = Broker()
    broker.hello("e1")
    with pytest.raises(BadMessage, match="is for peers"):
        broker.tell("e1", message)
    assert len(broker.switch.peers) == 1, "it costs the peer this message only"


def test_a_malformed_control_message_raises() -> None:
    broker = Broker()
    broker.hello("e1")
    with pytest.raises(BadMessage):
        broker.switch.receive("e1", name("e1"), [CONTROL, b"\xff"], 0.0)


def test_the_peer_whose_outbox_overflowed_gets_the_peer_list_again() -> None:
    broker = Broker()
    broker.hello("e1")
    broker.hello("p1")
    told = [message for key, message in controls(broker.switch.overflow("p1", 0.0)) if key == "p1"]
    assert told == [Welcome(FABRIC_VERSION, NO_HELLO, 3), up("e1", 1)]


def test_leases_do_not_expire_while_the_broker_is_suspended() -> None:
    broker = Broker()
    broker.hello("e1", now=0.0)
    assert broker.switch.expired(1.0) == []
    assert broker.switch.expired(60.0) == []
    assert len(broker.switch.peers) == 1


def test_nothing_is_kept_of_a_lost_peer() -> None:
    broker = Broker()
    broker.hello("e1")
    broker.switch.lost("e1", "gone")
    assert broker.switch.peer("e1") is None
    assert broker.switch.expired(1e9) == []
    broker.hello("p1")
    assert broker.send("p1", "e1", b"x") == []


def test_the_peer_of_a_key_is_known_while_it_is_up() -> None:
    broker = Broker()
    epoch = broker.hello("e1", {"grace_s": 60})
    assert broker.switch.peer("e1") == PeerInfo(name("e1"), epoch, {"grace_s": 60})
    assert broker.switch.peer("e2") is None
    assert broker.switch.key(name("e1").id) == "e1"
    assert broker.switch.key(name("e2").id) is None


def test_attributes_that_a_key_does_not_allow_are_refused_at_hello_and_at_announce() -> None:
    broker = Broker(objection=lambda _, attributes: "not that" if "services" in attributes else None)
    assert broker.tell("p1", Hello(1, 1, 1, {"services": []})) == [("p1", Refused("not that"))]
    assert broker.refused == [("p1", "not that")]
    broker.hello("e1")
    epoch = broker.hello("p1")
    assert broker.tell("p1", Announce({"services": []})) == [
        ("p1", Refused("not that")),
        ("e1", Down(name("p1").id, epoch, REVOKED)),
    ]


def test_others_are_told_what_the_key_of_a_peer_says_and_again_when_that_changes() -> None:
    certificates = {"p1": "all"}
    broker = Broker(certified=lambda key, attributes: {**attributes, "granted": certificates.get(str(key))})
    broker.hello("e1")
    epoch = broker.hello("p1", {"granted": "forged"})
    peer = broker.switch.peer("p1")
    assert peer is not None and peer.attributes == {"granted": "all"}
    again: list[tuple[Hashable, Control]] = [("e1", up("p1", epoch, {"granted": "all", "weight": 2}))]
    assert broker.tell("p1", Announce({"granted": "forged", "weight": 2})) == again
    assert broker.switch.recertify() == []
    certificates["p1"] = "some"
    told = [(key, parse_control(frames)) for key, frames in broker.switch.recertify()]
    assert told == [("e1", up("p1", epoch, {"granted": "some", "weight": 2}))]
    assert broker.switch.recertify() == []


# Interest: once peers are many, they hear only of those with which they share a service.


class Fleet:
    """A switch with providers of one service, `FEW` in all, and what each peer knows by what it was told."""

    def __init__(self, providers: int) -> None:
        self.switch = Switch(lease_s=LEASE_S, max_peers=10_000)
        self.known: dict[str, dict[bytes, Mapping[str, object]]] = {}
        self.sent = 0
        for number in range(providers):
            self.join(f"p{number}", "web")

    def join(self, key: str, *services: str, everything: bool = False) -> None:
        self.known[key] = {}
        self.say(key, Hello(1, 1, 1, {} if everything else self.attributes(*services)))

    def attributes(self, *services: str) -> dict[str, object]:
        return {"services": list(services), **interest_attribute(interest_in(services))}

    def say(self, key: str, message: Control) -> None:
        self.deliver(self.switch.receive(key, self.name(key), control(message), 0.0))

    def name(self, key: str) -> PeerName:
        return PeerName(Role(key[:1].encode()), key, key.encode().ljust(16, b"-"))

    def deliver(self, outputs: list[Output]) -> None:
        self.sent += len(outputs)
        for key, message in controls(outputs):
            match message:
                case Welcome():
                    self.known[str(key)].clear()
                case Up():
                    self.known[str(key)][message.role + message.incarnation] = message.attributes
                case Down():
                    del self.known[str(key)][message.peer_id]
                case _:
                    pass

    def knows(self, key: str, other: str) -> bool:
        """Return whether two peers know each other; both do, or none."""
        known = self.name(other).id in self.known[key]
        assert known == (self.name(key).id in self.known[other])
        return known


def test_few_peers_hear_of_everybody() -> None:
    fleet = Fleet(FEW - 3)
    for key in ("e1", "e2"):
        fleet.join(key, "db")
    assert len(fleet.known["e1"]) == FEW - 3 and len(fleet.known["p0"]) == 2


def test_many_peers_hear_of_those_with_whom_they_share_a_service_and_forget_the_others() -> None:
    fleet = Fleet(FEW - 2)
    fleet.join("e1", "db")
    fleet.join("e2", "web")
    assert fleet.knows("e1", "p0")
    fleet.join("p900", "db")
    assert [fleet.knows("e1", key) for key in ("p0", "p900")] == [False, True]
    assert [fleet.knows("e2", key) for key in ("p0", "p900")] == [True, False]
    fleet.join("p901", everything=True)
    fleet.join("e3", everything=True)
    assert all(fleet.knows(key, "p901") for key in ("e1", "e2", "e3"))
    assert all(fleet.knows("e3", key) for key in fleet.known if key[0] == "p")
    before = fleet.sent
    fleet.join("p902", "web")
    assert fleet.sent == before + 1 + 2 * 2, "a Welcome, and two edges that hear of it"


def test_a_peer_of_many_that_announces_another_service_hears_of_its_peers_and_keeps_those_it_had() -> None:
    fleet = Fleet(FEW)
    fleet.join("e1", "db")
    assert not fleet.known["e1"]
    fleet.say("e1", Announce(fleet.attributes("web")))
    assert len(fleet.known["e1"]) == FEW and fleet.knows("e1", "p0")
    fleet.join("p900", "db")
    assert fleet.knows("e1", "p900"), "streams of a former service may be open"
    fleet.say("p0", Announce(fleet.attributes()))
    assert fleet.knows("e1", "p0")
    assert fleet.known["e1"][fleet.name("p0").id] == {"services": []}, "the interest is for the broker alone"
    fleet.say("p0", Hello(1, 1, 2, fleet.attributes()))
    assert fleet.knows("e1", "p0")
    fleet.say("e1", Announce({}))
    assert fleet.knows("e1", "p0")
    fleet.deliver(fleet.switch.lost("e1", "lost"))
    assert not fleet.known["p0"] and not fleet.known["p900"]


def test_an_overflow_among_many_is_told_to_those_who_know_the_peer() -> None:
    fleet = Fleet(FEW)
    fleet.join("e1", "web")
    fleet.join("e2", "db")
    fleet.deliver(fleet.switch.overflow("p0", 0.0))
    assert fleet.knows("e1", "p0") and not fleet.knows("e2", "p0")


@pytest.mark.parametrize("value", [b"", bytes(INTEREST_BYTES + 1), "web", 5, None])
def test_an_interest_that_is_not_understood_is_one_in_everything(value: object) -> None:
    fleet = Fleet(FEW)
    fleet.known["e1"] = {}
    fleet.say("e1", Hello(1, 1, 1, {INTEREST: value}))
    assert fleet.knows("e1", "p0")


def test_the_peer_list_is_bounded_in_bytes() -> None:
    fleet = Fleet(0)
    large = {"text": "x" * 4000}
    number = 0
    while True:
        key = f"p{number}"
        ((_, first), *_) = controls(fleet.switch.receive(key, fleet.name(key), control(Hello(1, 1, 1, large)), 0.0))
        if isinstance(first, Refused):
            break
        number += 1
    assert (number - 1) * 4000 < LIST_BYTES <= number * 4100 and "use more brokers" in first.reason
    fleet.switch.lost("p0", "lost")
    fleet.switch.lost("p1", "lost")
    fleet.join("p2", "web")
    fleet.join("p0", "web")
    assert len(fleet.switch.peers) == number - 1
