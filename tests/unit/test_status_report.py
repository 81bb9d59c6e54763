"""Documents as tables and as JSON: readable without a terminal, and harmless to one."""

import json

import pytest

from goreprox.report import show, show_json
from goreprox.status import Document, PeerStatus

PEER: PeerStatus = {
    "name": "far",
    "role": "provider",
    "incarnation": "12345678",
    "state": "up",
    "down_s": None,
    "epoch": 42,
    "services": ["web", "evil\x1b]0;title\x07[red]"],
    "paths": [
        {"label": "[::1]:9887", "in_use": True, "fabric_epoch": 3, "round_trip_s": 0.0123},
        {"label": "backup:9887", "in_use": False, "fabric_epoch": 5, "round_trip_s": None},
    ],
    "streams_open": 12,
    "streams_total": 345,
    "sent_bytes": 5_000_000,
    "received_bytes": 6000,
    "scheduled_streams": 8,
    "control_events": 9,
    "outages": 4,
    "replayed_bytes": 70_000,
}
DOCUMENT: Document = {
    "format": 1,
    "version": "1.2.3",
    "role": "server",
    "name": "near",
    "incarnation": "abcdef01",
    "pid": 4711,
    "started_at": "2020-01-01T00:00:00.000+00:00",
    "up_s": 3723.4,
    "draining": False,
    "ports": {"clients": [80, 81], "providers": [9887]},
    "services": {"web": [":80", ":81"]},
    "streams": {
        "open": 12,
        "limit": 100,
        "total": 345,
        "waiting_clients": 2,
        "refused_clients": 3,
        "dialing": 0,
        "sent_bytes": 5_000_000,
        "received_bytes": 6000,
        "borrowed_bytes": 1000,
        "lendable_bytes": 2000,
    },
    "peers": [PEER],
    "links": [{"label": "hub:9888", "state": "greeting"}],
    "broker": {
        "messages": 987,
        "dropped_messages": 65,
        "members": [
            {
                "name": "slow",
                "role": "provider",
                "incarnation": "00000000",
                "fabric_epoch": 6,
                "outbox_messages": 77,
                "outbox_bytes": 88_000,
            }
        ],
    },
    "ends": [
        {
            "ended_at": "2020-01-01T00:00:00.000+00:00",
            "client": "192.0.2.1:5",
            "service": "web",
            "peer": None,
            "sent_bytes": 1,
            "received_bytes": 2,
            "reason": "target \x1b[2J: refused " + "r" * 150,
        }
    ],
}


def shown(capsys: pytest.CaptureFixture[str], *documents: Document) -> list[list[str]]:
    show(documents)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_everything_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, DOCUMENT)
    assert lines[0] == ["server", "near", "abcdef01,", "pid", "4711,", "goreprox", "1.2.3,", "up", "1:02:03"]
    text = [" ".join(line) for line in lines]
    assert "listens: clients 80, 81; providers 9887" in text
    assert "services: web = :80, :81" in text
    assert "streams: 12 open of 100, 345 in total, 2 waiting, 0 dialing, 3 refused" in text
    assert "bytes: 5.0 MB sent, 6.0 kB received" in text
    assert "memory: 1.0 kB lent of 2.0 kB" in text
    assert "broker: 987 messages, 65 dropped" in text
    assert "hub:9888 greeting" in text
    assert "provider far [::1]:9887 in use 3 12.3 ms" in text
    assert "provider far backup:9887 standby 5" in text
    assert "provider slow 00000000 6 77 88.0 kB" in text
    (peer,) = [line for line in text if line.startswith("provider far 12345678 up 42 web, ")]
    assert peer.endswith(" 12 345 5.0 MB 6.0 kB 8 + 9 4 70.0 kB")


def test_nothing_from_afar_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show([DOCUMENT])
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert "evil\\x1b]0;title\\x07[red]" in out


def test_no_line_is_wrapped_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    show([DOCUMENT])
    assert "target \\x1b[2J: refused " + "r" * 150 in capsys.readouterr().out


def test_what_is_empty_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    bare: Document = {**DOCUMENT, "ports": {}, "services": {}, "streams": None, "peers": [], "links": []}
    bare |= {"broker": None, "ends": [], "draining": True}
    (title,) = shown(capsys, bare)
    assert title[-1] == "draining"
    assert shown(capsys, bare, bare) == [title, [], title]


def test_json_is_one_array_with_the_documents_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_json([DOCUMENT, DOCUMENT])
    out = capsys.readouterr().out
    assert json.loads(out) == [DOCUMENT, DOCUMENT]
    assert out.isascii()
