"""Documents as tables and as JSON: readable without a terminal, and harmless to one."""

import json
from typing import cast

import pytest

from goreprox.cli.report import show, show_json
from goreprox.cli.summary import summary
from goreprox.status.document import Document, PeerStatus

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
    "process": "provider",
    "machine": "box",
    "up_s": 61.0,
}
DOCUMENT: Document = {
    "format": 1,
    "version": "1.2.3",
    "build": "compiled",
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
    "links": [{"label": "hub:9888", "state": "down", "since_s": 12.0, "problem": "cannot reach it: refused"}],
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
    "connections": [
        {
            "client": "[2001:db8::1]:54321",
            "service": "web",
            "peer": "far",
            "state": "open",
            "open_s": 3600.0,
            "sent_bytes": 1,
            "received_bytes": 2_000_000,
        },
        {
            "client": "192.0.2.1:6",
            "service": "web",
            "peer": None,
            "state": "opening",
            "open_s": 1.0,
            "sent_bytes": 0,
            "received_bytes": 0,
        },
    ],
}


def shown(capsys: pytest.CaptureFixture[str], *documents: Document) -> list[list[str]]:
    show(documents, verbose=True)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_published_names_are_shown_with_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    document: Document = {
        **DOCUMENT,
        "peers": [{**PEER, "services": ["http://a.example@far"]}],
        "published": {
            "http://a.example@far": {"at": ["https://a.example"], "problem": None},
            "tcp://80@far": {"at": [], "problem": "taken"},
        },
    }
    lines = list(summary(document))
    assert "  http://a.example@far <- https://a.example" in lines
    assert "  tcp://80@far <- nowhere: taken" in lines
    assert not any("other services" in line for line in lines)
    assert "    no edge" not in list(summary({**document, "role": "provider"})), "a published name is not a service"
    text = [" ".join(line) for line in shown(capsys, document)]
    assert "published: http://a.example@far at https://a.example" in text
    assert "published: tcp://80@far at nowhere (taken)" in text


def test_everything_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, DOCUMENT)
    text = [" ".join(line) for line in lines]
    assert text[0] == "server near abcdef01, pid 4711, goreprox 1.2.3 (compiled), up 1:02:03"
    assert "listens: clients 80, 81; providers 9887" in text
    assert "services: web = :80, :81" in text
    assert "streams: 12 open of 100, 345 in total, 2 waiting, 0 dialing, 3 refused" in text
    assert "bytes: 5.0 MB sent, 6.0 kB received" in text
    assert "shared pool: 1.0 kB used of 2.0 kB" in text
    assert "broker: 987 messages, 65 dropped" in text
    assert "hub:9888 down cannot reach it: refused" in text
    assert "provider far [::1]:9887 in use 3 12.3 ms" in text
    assert "provider far backup:9887 standby 5" in text
    assert "provider slow 00000000 6 77 88.0 kB" in text
    (peer,) = [line for line in text if line.startswith("provider far 12345678 up 42 web, ")]
    assert peer.endswith(" 12 345 5.0 MB 6.0 kB 8 + 9 4 70.0 kB")


def test_a_few_lines_say_who_serves_what_since_when_and_why_a_link_is_down(capsys: pytest.CaptureFixture[str]) -> None:
    show([{**DOCUMENT, "services": {"web": [":80", ":81"], "ssh": [":22"]}}])
    text = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert text == [
        "server near: up 1:02:03, 12 connections, 2 waiting for a provider, 3 refused so far",
        "web <- :80, :81",
        "provider far on box (12345678) up 0:01:01 12 open",
        "ssh <- :22",
        "no provider",
        "link to hub:9888 down 0:00:12: cannot reach it: refused",
        "open connections, the latest first",
        "client service by way of open sent received",
        "[2001:db8::1]:54321 web far 1:00:00 1 byte 2.0 MB",
        "192.0.2.1:6 web waiting 0:00:01 0 bytes 0 bytes",
        "and 10 more",
        "ended last",
        text[-1],
    ]
    assert text[-1].endswith("192.0.2.1:5 web target \\x1b[2J: refused " + "r" * 150)


def test_it_fits_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    show([DOCUMENT])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == len(list(summary(DOCUMENT))), "nothing is wrapped"


def test_an_older_process_is_shown_without_what_it_does_not_tell(capsys: pytest.CaptureFixture[str]) -> None:
    older = {key: value for key, value in DOCUMENT.items() if key != "connections"}
    older["links"] = [{"label": "hub:9888", "state": "up"}]
    older["peers"] = [{key: value for key, value in PEER.items() if key not in ("process", "machine", "up_s")}]
    for verbose in (False, True):
        show([cast("Document", older)], verbose=verbose)
        assert "provider far" in capsys.readouterr().out


@pytest.mark.parametrize("verbose", [False, True])
def test_nothing_from_afar_steers_the_terminal(capsys: pytest.CaptureFixture[str], verbose: bool) -> None:
    services = {"web": [":80"], "evil\x1b]0;title\x07[red]": [":81"]}
    show([{**DOCUMENT, "services": services}], verbose=verbose)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert "evil\\x1b]0;title\\x07[red]" in out


def test_no_line_is_wrapped_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    show([DOCUMENT], verbose=True)
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
