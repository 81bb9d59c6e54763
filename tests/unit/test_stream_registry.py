"""The registry of stream owners."""

import pytest

from goreprox.tunnel.connections import Connections


def test_members_keep_their_order_and_may_be_removed_while_others_iterate() -> None:
    connections = Connections[str]()
    for name in ("one", "two", "three"):
        connections.add(name)
    assert (len(connections), bool(connections)) == (3, True)
    seen = []
    for name in connections:
        connections.remove(name)
        seen.append(name)
    assert seen == ["one", "two", "three"]
    assert (len(connections), bool(connections)) == (0, False)


def test_a_member_is_added_and_removed_once() -> None:
    connections = Connections[str]()
    connections.add("one")
    with pytest.raises(AssertionError):
        connections.add("one")
    connections.remove("one")
    with pytest.raises(KeyError):
        connections.remove("one")
