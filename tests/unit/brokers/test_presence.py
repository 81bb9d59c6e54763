"""Leases and epochs."""

from brokers.presence import Presence


def test_every_new_lease_has_a_higher_epoch() -> None:
    presence = Presence(6.0)
    epochs = [presence.enter(key, 0.0) for key in ("a", "b", "a")]
    presence.leave("a")
    epochs.append(presence.enter("a", 0.0))
    assert epochs == sorted(set(epochs))


def test_a_silent_peer_expires_after_its_lease_and_not_before() -> None:
    presence = Presence(6.0)
    presence.enter("a", 10.0)
    assert presence.expired(16.0) == []
    assert presence.expired(16.001) == ["a"]


def test_a_renewed_lease_lasts_longer() -> None:
    presence = Presence(6.0)
    presence.enter("a", 10.0)
    presence.enter("b", 10.0)
    presence.renew("a", 14.0)
    assert presence.expired(17.0) == ["b"]


def test_a_lease_that_was_ended_does_not_expire() -> None:
    presence = Presence(6.0)
    presence.enter("a", 10.0)
    presence.leave("a")
    presence.leave("a")
    assert presence.expired(100.0) == []


def test_only_a_pause_longer_than_the_lease_begins_all_leases_anew() -> None:
    presence = Presence(6.0)
    presence.enter("a", 0.0)
    assert presence.expired(0.0) == presence.expired(6.0) == []
    assert presence.expired(6.5) == ["a"]
    presence.renew("a", 7.0)
    assert presence.expired(13.5) == []  # 6.5 s may have been a suspend
