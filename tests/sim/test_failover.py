"""A stream that one provider refuses goes to another, with the bytes that it has by then."""

from tests.support.network import Network, Socket, pattern


def test_a_refused_stream_takes_its_bytes_to_another_session() -> None:
    first, second = Network(1), Network(2)
    second.budgets["edge"] = first.budgets["edge"]
    for net in (first, second):
        net.connect("a")
        net.step()
        net.step()
    first.refuse = True
    client = first.open()
    client.write(3000)
    first.step()  # the Open and the first bytes go out
    first.step()  # the refusal comes back
    assert client.stream in first.refused
    client.write(2000)  # now nobody's; must not enter the first session's queue
    second.clients.append(client)
    second.sessions["edge"].open(client.stream)
    client.write(1000)
    for _ in range(10):
        first.step()
        second.step()
    target: Socket = second.targets[client.stream.id]
    target.deliver(1 << 20, second.now)
    assert bytes(target.read) == pattern(client.seed, 0, 6000)
    assert not first.failures and not second.failures
