"""Each counter of a process, and the event that moves it."""

import pytest

from goreprox.protocol.errors import ExportError
from goreprox.protocol.events import Abort, Accept, Code, Data, Eof, Goodbye, Refuse, Reset
from goreprox.protocol.fields import Fields
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode, Totals
from tests.support.peer import GRACE_S, WINDOW, Peer, accepted, dialing, edge, live, opened


def test_bytes_are_counted_as_sockets_are_read_and_written_before_a_session_carries_the_stream_too() -> None:
    peer = edge()
    waiting = Stream(opener=True, service="web", client="test", budget=peer.budget)
    waiting.write(b"four")
    totals, counters = peer.budget.totals, peer.session.counters
    assert (totals.streams, totals.sent_bytes, counters.sent_bytes) == (1, 4, 0)
    peer.session.open(waiting)
    assert (totals.sent_bytes, counters.sent_bytes) == (4, 4)
    waiting.write(b"more")
    assert (totals.sent_bytes, counters.sent_bytes) == (8, 8)
    peer.heard()
    peer.say(Accept(1, WINDOW), Data(1, 0, bytes(30)))
    assert (totals.received_bytes, counters.received_bytes) == (0, 0)
    waiting.consume(20, now=0.0)
    waiting.abort("over")
    assert (totals.sent_bytes, totals.received_bytes) == (counters.sent_bytes, counters.received_bytes) == (8, 20)


def test_a_stream_that_moves_takes_its_bytes_to_the_next_session_and_the_process_counts_them_once() -> None:
    peer = edge()
    stream = peer.open()
    stream.write(b"four")
    peer.heard()
    peer.say(Refuse(1, Code.FULL, "full"))
    assert (peer.session.counters.sent_bytes, peer.budget.totals.sent_bytes) == (0, 4)
    unsent = peer.open()
    unsent.write(b"five!")
    peer.session.path_down("a", 0.0)
    assert (peer.session.counters.sent_bytes, peer.budget.totals.sent_bytes) == (0, 9)
    peer.session.open(stream)
    assert (peer.session.counters.sent_bytes, peer.budget.totals.sent_bytes) == (4, 9)


def test_an_outage_is_counted_and_the_resume_with_its_time_and_the_bytes_sent_again() -> None:
    peer, stream = opened()
    totals = peer.budget.totals
    assert (totals.outages, totals.resumes, totals.resume_s) == (0, 0, 0.0)
    stream.write(b"12345")
    peer.heard()
    assert stream.outages == 0
    peer.session.path_down("a", 10.0)
    assert (totals.outages, totals.resumes, stream.outages) == (1, 0, 1)
    peer.now = 14.0
    peer.connect(live(1, received=2, delivered=2), next_id=2)
    assert (totals.outages, totals.resumes, totals.resume_s, totals.replayed_bytes) == (1, 1, 4.0, 3)
    resumption = peer.session.multiplexer.resumption
    assert (resumption.outage_s, resumption.replayed_bytes) == (4.0, 3)
    assert peer.open().outages == 0


def test_the_first_epoch_is_no_resume() -> None:
    peer = Peer()
    peer.now = 5.0
    peer.connect()
    assert (peer.budget.totals.resumes, peer.session.multiplexer.resumption.outage_s) == (0, None)


def test_a_stream_is_done_when_both_sides_have_closed_it() -> None:
    peer, stream = opened()
    stream.write_eof()
    peer.heard()
    peer.say(Eof(1, 0))
    stream.deliver_eof(now=0.0)
    peer.heard()
    assert stream.end_code is EndCode.DONE


def test_a_reset_is_the_clients_or_the_targets_whichever_end_tells_it() -> None:
    _, ours = opened()
    ours.reset("gone", now=0.0)
    peer, theirs = opened()
    peer.say(Reset(1, 0, "gone"))
    _, target = accepted()
    target.reset("gone", now=0.0)
    peer, client = accepted()
    peer.say(Reset(1, 0, "gone"))
    found = [each.end_code for each in (ours, theirs, target, client)]
    assert found == [EndCode.CLIENT_RESET, EndCode.TARGET_RESET, EndCode.TARGET_RESET, EndCode.CLIENT_RESET]


def test_the_first_code_of_an_end_stays() -> None:
    peer, stream = opened()
    stream.reset("gone", now=0.0)
    peer.say(Abort(1, Code.OTHER, "late"))
    stream.abort("later")
    assert (stream.end_code, stream.end_reason) == (EndCode.CLIENT_RESET, "gone")


def test_an_abort_of_the_peer_is_its_own_matter_unless_it_has_forgotten_the_stream() -> None:
    peer, stream = opened()
    peer.say(Abort(1, Code.OTHER, "tired"))
    assert (stream.end_code, stream.end_reason) == (EndCode.ABORTED, "tired")
    peer, stream = opened()
    peer.say(Abort(1, Code.GONE, "never heard of it"))
    assert stream.end_code is EndCode.PEER_LOST


def test_a_stream_that_has_passed_is_done_though_the_peer_has_forgotten_it() -> None:
    peer, stream = opened()
    stream.write_eof()
    peer.heard()
    peer.say(Eof(1, 0))
    stream.receive.deliver_eof()
    peer.say(Abort(1, Code.GONE, "never heard of it"))
    assert (stream.end_code, stream.end_reason) == (EndCode.DONE, "")


def test_a_peer_that_knows_no_stream_any_more_has_lost_those_that_were_accepted() -> None:
    peer, stream = opened()
    peer.session.path_down("a", 0.0)
    peer.connect()
    assert stream.end_code is EndCode.PEER_LOST


def test_a_refusal_ends_a_stream_at_the_acceptor() -> None:
    _, stream = dialing()
    stream.refuse(Code.TARGET, "nobody listens")
    assert (stream.end_code, stream.end_reason) == (EndCode.REFUSED, "nobody listens")


def test_what_ends_a_session_is_the_code_of_its_streams() -> None:
    peer, stream = opened()
    peer.say(Goodbye("the provider was shut down"))
    assert stream.end_code is EndCode.PEER_LEFT
    peer, stream = opened()
    peer.session.goodbye("this edge is shut down")
    assert stream.end_code is EndCode.SHUTDOWN
    peer, stream = opened()
    peer.session.fail("nonsense", 0.0)
    assert stream.end_code is EndCode.FAILED
    peer, stream = opened()
    peer.session.path_down("a", 0.0)
    peer.session.tick(2 * GRACE_S)
    assert stream.end_code is EndCode.PEER_LOST


def test_totals_go_on_in_the_next_code() -> None:
    before = Totals(streams=9, sent_bytes=8, received_bytes=7, outages=6, replayed_bytes=5, resumes=4, resume_s=3.5)
    before.ends["done"] = 2
    before.refused_clients["tls"] = 3
    before.dial_failures["web"] = 4
    after = Totals()
    after.take_over(Fields(before.export()))
    assert after == before
    assert after.next_number() == 10


@pytest.mark.parametrize("changed", [{"streams": -1}, {"resume_s": "1"}, {"ends": [1]}, {"ends": {"done": "many"}}])
def test_a_malformed_export_of_totals_is_rejected(changed: dict[str, object]) -> None:
    with pytest.raises(ExportError):
        Totals().take_over(Fields(Totals().export() | changed))
