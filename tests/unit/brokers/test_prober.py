"""When peers are probed after connections were closed."""

import asyncio

import pytest

from brokers.prober import READ_TURNS, Prober
from tests.support.waiting import eventually


class Peers:
    """Counts probes; messages wait to be read for a number of turns."""

    def __init__(self) -> None:
        self.probes = 0
        self.unread_turns = 0
        self.prober = Prober(probe=self._probe, readable=self._readable)

    def _probe(self) -> None:
        self.probes += 1

    def _readable(self) -> bool:
        self.unread_turns -= 1
        return self.unread_turns >= 0


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_peers_are_probed_soon_after_a_disconnection_and_once_more_later() -> None:
    peers = Peers()
    peers.prober.disconnected()
    assert peers.probes == 0
    await turns(1)
    assert peers.probes == 1
    await eventually(lambda: peers.probes == 2)
    peers.prober.disconnected()
    await turns(1)
    assert peers.probes == 3
    peers.prober.close()


async def test_many_disconnections_cost_two_probes_and_one_more_for_the_late_ones() -> None:
    peers = Peers()
    for _ in range(1000):
        peers.prober.disconnected()
    await turns(2)
    assert peers.probes == 1
    await eventually(lambda: peers.probes == 3)
    peers.prober.close()


@pytest.mark.parametrize(("unread", "probed_after"), [(3, 4), (1000, READ_TURNS + 1)])
async def test_messages_are_read_before_a_peer_counts_as_lost(unread: int, probed_after: int) -> None:
    peers = Peers()
    peers.unread_turns = unread
    peers.prober.disconnected()
    await turns(probed_after - 1)
    assert peers.probes == 0
    await turns(1)
    assert peers.probes == 1
    peers.prober.close()


async def test_nothing_is_probed_after_closing() -> None:
    peers = Peers()
    peers.prober.disconnected()
    peers.prober.close()
    await turns(2)
    assert peers.probes == 0
