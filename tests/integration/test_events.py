"""What an edge and a provider tell of links, peers and streams, where both are real."""

from collections.abc import Mapping, Sequence

from goreprox.process.feed import Event, Feed
from tests.support.tunnel import Tunnel
from tests.support.waiting import eventually


def told(feed: Feed) -> Sequence[Event]:
    return feed.after(feed.forgotten, feed.count)


def fields(feed: Feed, name: str) -> list[Mapping[str, object]]:
    return [event.fields for event in told(feed) if event.name == name]


def names(feed: Feed) -> list[str]:
    return [event.name for event in told(feed)]


async def test_an_outage_is_told_at_both_ends_with_its_time_and_the_bytes_sent_again(tunnel: Tunnel) -> None:
    provider = await tunnel.provide()
    client, target = await tunnel.pair()
    await client.send(b"x")
    assert await target.receive(1) == b"x"
    tunnel.relay.silence()
    await client.send(b"fifteen bytes..")
    sent = tunnel.edge.driver.budget.totals
    await eventually(lambda: sent.sent_bytes == 16)
    tunnel.relay.cut()
    tunnel.relay.unsilence()
    assert await target.receive(15) == b"fifteen bytes.."
    for driver, least in ((tunnel.edge.driver, 15), (provider.driver, 0)):
        feed = driver.feed
        await eventually(lambda feed=feed: len(fields(feed, "peer_up")) > 1)  # type: ignore[misc]
        first, *again = fields(feed, "peer_up")
        assert "outage_s" not in first
        assert sum(int(str(up["replayed_bytes"])) for up in again) == driver.budget.totals.replayed_bytes >= least
        assert all(float(str(up["outage_s"])) > 0 and up["streams"] == 1 for up in again)
        down = fields(feed, "peer_down")[0]
        assert (down["peer"], down["streams"]) == (first["peer"], 1)
        assert down["reason"]
    assert fields(provider.driver.feed, "link_lost")[0]["broker"] == f"127.0.0.1:{tunnel.relay.port}"
    order = ("link_up", "peer_up", "stream_opened", "link_lost", "peer_down")
    assert names(provider.driver.feed)[: len(order)] == list(order)
    assert len(fields(provider.driver.feed, "link_up")) == len(fields(provider.driver.feed, "link_lost")) + 1


async def test_a_stream_is_told_when_it_is_opened_and_when_it_has_ended(tunnel: Tunnel) -> None:
    provider = await tunnel.provide()
    client, target = await tunnel.pair()
    await client.send(b"four")
    assert await target.receive(4) == b"four"
    target.reset()
    await client.receive_to_reset()
    await tunnel.at_rest(provider)
    name = "{}:{}".format(*client.sock.getsockname())
    for feed, sent, received in ((tunnel.edge.driver.feed, 4, 0), (provider.driver.feed, 0, 4)):
        (opened,), (ended,) = fields(feed, "stream_opened"), fields(feed, "stream_ended")
        assert opened == {"number": 1, "client": name, "service": "default"}
        assert {**opened, "code": "target_reset", "outages": 0}.items() <= ended.items()
        assert (ended["sent_bytes"], ended["received_bytes"]) == (sent, received)
        assert ended["reason"] and ended["peer"] == ("provider" if feed is tunnel.edge.driver.feed else "edge")


async def test_a_provider_that_drains_and_leaves_is_told(tunnel: Tunnel) -> None:
    provider = await tunnel.provide()
    await provider.close(drain_s=0)
    edge = tunnel.edge.driver.feed
    await eventually(lambda: fields(edge, "peer_left"))
    assert fields(edge, "peer_left")[0]["reason"] == "the provider was shut down"
    assert names(edge)[-2:] == ["peer_draining", "peer_left"]
