"""What a peer may list when an epoch begins, and how it gets responses: a page at a time."""

import tracemalloc

import pytest

from goreprox.protocol.events import (
    Abort,
    Accept,
    Ack,
    Code,
    Eof,
    Event,
    Live,
    Open,
    Refuse,
    Reset,
    Resume,
)
from goreprox.protocol.limits import KIB, RESUME_PAGE, WINDOW_INITIAL
from goreprox.protocol.resume import GONE
from tests.support.peer import WINDOW, Peer, accepted, edge, failure, hello, live, opened, provider


def test_a_resume_may_not_list_too_many_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goreprox.protocol.resume.RESUME_MAX", 2)
    peer = Peer()
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello(live(2), live(3), next_id=5, last=False))
    assert peer.session.failed is None
    peer.say(hello(live(4), next_id=5))
    assert failure(peer) == "more than 2 streams listed"


def resume(peer: Peer, ids: range, *, last: bool = True) -> None:
    """Say the pages that list these streams."""
    for start in range(0, len(ids), RESUME_PAGE):
        page = ids[start : start + RESUME_PAGE]
        lives = [live(stream_id) for stream_id in page]
        peer.say(hello(*lives, next_id=ids[-1] + 1, last=last and page[-1] == ids[-1]))


def test_a_peer_may_not_list_a_stream_that_it_has_never_seen() -> None:
    peer = Peer()
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello(live(1), live(7), next_id=7))
    assert failure(peer) == "stream 7 listed by a peer that has seen none from 7 on"


def test_an_acceptor_is_listed_no_more_ended_streams_than_it_was_ever_opened() -> None:
    peer = provider()
    for stream_id in (1, 5, 9):
        peer.say(Open(stream_id, "web", "test", "", 0))
        peer.session.streams[stream_id].refuse(Code.OTHER, "no")
    peer.heard()
    peer.begin(epoch=8)
    peer.session.path_down("a", 0.0)
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello(live(1), live(5), live(9), next_id=10**6, last=False))
    assert peer.session.failed is None
    peer.say(hello(live(10), live(11), next_id=10**6, last=False))  # about to be opened
    assert peer.session.failed is None
    peer.session.path_down("a", 0.0)
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello(*map(live, range(1, 10)), next_id=10**6))
    assert failure(peer) == "more than 3 streams listed that have ended here"


def test_an_opener_is_listed_no_more_ended_streams_than_can_have_been_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goreprox.protocol.session.LAST_WORDS_MAX", 100)
    for count, failed in ((164, None), (165, "more than 164 streams listed that have ended here")):
        peer = Peer(max_streams=64)
        peer.session.path_up("a", 0.0)
        peer.heard()
        resume(peer, range(1000, 1000 + count))
        assert peer.session.failed == failed


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("opener", [True, False])
def test_streams_that_only_the_peer_has_get_responses_a_page_at_a_time(*, opener: bool, last: bool) -> None:
    """And take 8 bytes each while they wait, whether or not the peer's pages ever end."""
    count = 20 * RESUME_PAGE
    peer = Peer(opener=opener, max_streams=64)
    peer.session.path_up("a", 0.0)
    peer.heard()
    if not opener:
        peer.say(hello())
        for stream_id in range(1, count + 1):
            peer.say(Open(stream_id, "web", "test", "", 0))
            stream = peer.session.streams[stream_id]
            peer.say(Reset(stream_id, 0, "there"))
            stream.finish_reset()
        peer.notices()
        peer.session.path_down("a", 0.0)
        peer.session.path_up("a", 0.0)
        peer.heard()
    tracemalloc.start()
    resume(peer, range(1, count + 1), last=last)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 16 * count + 64 * KIB
    responses: list[list[Event]] = []
    while sum(map(len, responses)) < count:
        wakes = peer.wakes
        responses.append(peer.heard())
        assert 0 < len(responses[-1]) <= RESUME_PAGE
        assert (peer.wakes > wakes) is (sum(map(len, responses)) < count)
    assert [event for page in responses for event in page] == [
        Abort(stream_id, Code.GONE, GONE) for stream_id in range(1, count + 1)
    ]
    assert peer.heard() == []


def test_a_page_shows_streams_as_they_are_when_it_is_sent() -> None:
    peer = Peer(opener=False, max_streams=2 * RESUME_PAGE)
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello())
    ids = range(1, RESUME_PAGE + 4)
    for stream_id in ids:
        peer.say(Open(stream_id, "web", "test", "", 0))
    first, *_, before_last, last = streams = list(peer.session.streams.values())
    peer.session.path_down("a", 0.0)
    peer.session.path_up("a", 0.0)
    (page,) = peer.heard()
    assert isinstance(page, Resume) and not page.last
    assert all(not listed.accepted for listed in page.streams)
    first.accept()  # its page is out, so the peer is told once it has said all of its own
    before_last.accept()  # its page will tell
    last.abort("never mind")
    resume(peer, ids)
    streams[1].accept()
    assert not peer.session.settled
    (page,) = peer.heard()
    assert isinstance(page, Resume) and page.last
    assert [(listed.stream, listed.accepted) for listed in page.streams] == [
        (ids[-3], False),
        (ids[-2], True),
    ]
    told = peer.heard()
    assert [event.stream for event in told if isinstance(event, Accept)] == [1, 2]
    assert [event for event in told if isinstance(event, Abort)] == [Abort(ids[-1], Code.OTHER, "never mind")]


def test_a_stream_that_ends_before_the_last_page_gets_a_response() -> None:
    peer, stream = accepted()
    peer.say(Reset(1, 0, "there"))
    peer.session.path_down("a", 0.0)
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello(live(1), next_id=3, last=False))
    stream.finish_reset()
    peer.say(hello(next_id=3))
    assert peer.heard() == [Abort(1, Code.GONE, GONE)]


def test_a_stream_that_ends_before_its_page_is_sent_is_acknowledged() -> None:
    peer, stream = accepted()
    stream.write_eof()
    peer.heard()
    peer.say(Eof(1, 0))
    stream.deliver_eof(now=0.0)
    peer.heard()
    peer.session.path_down("a", 0.0)
    peer.session.path_up("a", 0.0)
    peer.begin(hello(Live(1, True, 0, 1, WINDOW, True), next_id=2), epoch=8)
    assert peer.session.streams == {}
    page, *rest = peer.heard()
    assert isinstance(page, Resume) and not page.streams
    assert peer.heard() + rest == [Ack(1, 1, WINDOW_INITIAL)]


def test_a_reset_that_was_lost_with_its_epoch_is_sent_again() -> None:
    peer, stream = accepted()
    stream.reset("gone", now=0.0)
    assert Reset(1, 0, "gone") in peer.heard()
    peer.session.path_down("a", 0.0)
    assert Reset(1, 0, "gone") in peer.connect(live(1), next_id=2)


def test_a_refused_stream_is_forgotten() -> None:
    peer = edge()
    stream = peer.open()
    peer.heard()
    assert peer.session.unanswered == 1
    peer.say(Refuse(stream.id, Code.TARGET, "no"))
    assert not peer.session.unanswered and not peer.session.streams


def test_a_stream_that_ends_before_the_last_page_gets_its_last_words() -> None:
    peer, stream = opened()
    peer.session.path_down("a", 0.0)
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello(live(1), next_id=2, last=False))
    stream.abort("enough")
    peer.say(hello(next_id=2))
    assert peer.heard() == [Abort(1, Code.OTHER, "enough")]


def test_last_words_are_forgotten_though_another_stream_is_listed() -> None:
    peer = edge()
    first, second = peer.open(), peer.open()
    peer.heard()
    peer.say(Accept(1, WINDOW), Accept(2, WINDOW))
    first.abort("first")
    second.abort("second")
    peer.session.path_down("a", 0.0)
    assert peer.connect(live(2), next_id=3)[1:] == [Abort(2, Code.OTHER, "second")]
    peer.session.path_down("a", 0.0)
    assert peer.connect(live(1), next_id=3)[1:] == [Abort(1, Code.GONE, GONE)]


def test_a_session_is_settled_once_every_listed_stream_has_a_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goreprox.protocol.resume.RESUME_PAGE", 1)
    peer = Peer()
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello(live(1), live(2), next_id=3))
    settled = []
    for stream_id in (1, 2):
        assert peer.heard() == [Abort(stream_id, Code.GONE, GONE)]
        peer.say()
        settled.append(peer.session.settled)
    assert settled == [False, True]


def test_a_reset_is_sent_again_with_the_open_that_was_lost() -> None:
    peer = edge()
    stream = peer.open()
    stream.reset("gone", now=0.0)
    said = peer.heard()
    assert said == [Open(1, "web", "test", "", WINDOW_INITIAL), Reset(1, 0, "gone")]
    peer.session.path_down("a", 0.0)
    assert peer.connect()[1:] == said
