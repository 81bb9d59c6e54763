"""Metrics of documents, judged by what Prometheus has for it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import CounterMetricFamily

from goreprox.monitor.metrics import DURATION, INFO, METRICS, PREFIX, READY, UP, Process, written
from goreprox.protocol.totals import EndCode
from goreprox.status.document import Document
from tests.support.metrics import OF_PROCESS, promtool, read, read_plain

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/goreprox.rules.yml"
BOARD = ROOT / "deploy/grafana/goreprox.json"
PAGE = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
NASTY = 'a"b\\c\nd'
KNOWN = {
    PREFIX + UP[0]: (),
    PREFIX + READY[0]: (),
    f"{PREFIX}{INFO[0]}_info": ("version", "build"),
    PREFIX + DURATION[0]: DURATION[2],
    **{f"{PREFIX}{each.name}{'_total' if each.kind is CounterMetricFamily else ''}": each.labels for each in METRICS},
}
"""The further labels of each metric."""


def document(**changes: object) -> Document:
    """Return a document that has a sample of each metric."""
    made: Any = {
        "format": 1,
        "version": "1.2.3",
        "build": "compiled",
        "role": "server",
        "name": "tunnel",
        "started_at": "2026-01-02T03:04:05.000+00:00",
        "draining": False,
        "services": {"web": [":1"], "ssh": [":2"]},
        "streams": {
            "open": 1,
            "limit": 100,
            "waiting_clients": 2,
            "dialing": 3,
            "borrowed_bytes": 4,
            "lendable_bytes": 5,
        },
        "peers": [
            {
                "name": "p",
                "incarnation": "01234567",
                "state": "up",
                "services": ["web"],
                "paths": [
                    {"label": "b:1", "in_use": True, "round_trip_s": 0.25},
                    {"label": "b:2", "in_use": False, "round_trip_s": None},
                ],
            },
            {"name": "p", "incarnation": "89abcdef", "state": "down", "services": ["web"], "paths": []},
        ],
        "links": [{"label": "b:1", "state": "up"}, {"label": "b:2", "state": "greeting"}],
        "broker": {
            "messages": 10,
            "dropped_messages": 11,
            "members": [
                {"role": "provider", "outbox_bytes": 7},
                {"role": "provider", "outbox_bytes": 8},
                {"role": "edge", "outbox_bytes": 0},
            ],
        },
        "counters": {
            "streams": 20,
            "sent_bytes": 21,
            "received_bytes": 22,
            "outages": 23,
            "replayed_bytes": 24,
            "resumes": 25,
            "resume_s": 2.5,
            "ends": {"done": 26, "timeout": 27},
            "refused_clients": {"rule": 28},
            "dial_failures": {"web": 29},
        },
        "http": {
            "requests": {"web": {"200": 30, "none": 31}, "": {"400": 32}},
            "durations": {"web": {"counts": [1, 2, 3], "sum_s": 4.5}},
            "bounds_s": [0.1, 1.0],
        },
        "certificates": [{"option": "tls-cert", "file": NASTY, "expires_at": 1.5e9}],
    }
    return made | changes  # type: ignore[no-any-return]


def process(made: Document | None, who: str = "server-tunnel.0", *, ready: bool = True) -> Process:
    return Process.named(who, made, ready=ready)


def texts(*processes: Process) -> tuple[str, str]:
    """Return the metrics in both formats."""
    return written(processes, "application/openmetrics-text")[0], written(processes, "text/plain")[0]


def test_each_metric_has_its_samples_in_both_formats() -> None:
    text, older = texts(process(document()))
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for name, labels, value, _ in read(text):
        assert {key: labels.pop(key) for key in OF_PROCESS} == {"role": "server", "name": "tunnel", "slot": "0"}
        found.setdefault(name, {})[tuple(labels.values())] = value
    assert found == {
        "goreprox_up": {(): 1},
        "goreprox_ready": {(): 1},
        "goreprox_build_info": {("compiled", "1.2.3"): 1},
        "goreprox_start_time_seconds": {(): 1767323045},
        "goreprox_draining": {(): 0},
        "goreprox_streams_open": {(): 1},
        "goreprox_streams_limit": {(): 100},
        "goreprox_waiting_clients": {(): 2},
        "goreprox_dialing": {(): 3},
        "goreprox_memory_pool_used_bytes": {(): 4},
        "goreprox_memory_pool_bytes": {(): 5},
        "goreprox_streams_total": {(): 20},
        "goreprox_stream_sent_bytes_total": {(): 21},
        "goreprox_stream_received_bytes_total": {(): 22},
        "goreprox_stream_ends_total": {("done",): 26, ("timeout",): 27},
        "goreprox_outages_total": {(): 23},
        "goreprox_replayed_bytes_total": {(): 24},
        "goreprox_resumes_total": {(): 25},
        "goreprox_resume_seconds_total": {(): 2.5},
        "goreprox_refused_clients_total": {("rule",): 28},
        "goreprox_dial_failures_total": {("web",): 29},
        "goreprox_http_requests_total": {("web", "200"): 30, ("web", "none"): 31, ("", "400"): 32},
        "goreprox_service_providers": {("web",): 1, ("ssh",): 0},
        "goreprox_peers": {("up",): 1, ("draining",): 0, ("down",): 1, ("failed",): 0},
        "goreprox_link_up": {("b:1",): 1, ("b:2",): 0},
        "goreprox_path_in_use": {("b:1", "01234567", "p"): 1, ("b:2", "01234567", "p"): 0},
        "goreprox_path_round_trip_seconds": {("b:1", "01234567", "p"): 0.25},
        "goreprox_broker_messages_total": {(): 10},
        "goreprox_broker_dropped_messages_total": {(): 11},
        "goreprox_broker_peers": {("provider",): 2, ("edge",): 1},
        "goreprox_broker_outbox_bytes": {(): 15},
        "goreprox_certificate_expiry_timestamp_seconds": {(NASTY, "tls-cert"): 1.5e9},
        "goreprox_http_request_duration_seconds_bucket": {
            ("0.1", "web"): 1,
            ("1.0", "web"): 3,
            ("+Inf", "web"): 6,
        },
        "goreprox_http_request_duration_seconds_count": {("web",): 6},
        "goreprox_http_request_duration_seconds_sum": {("web",): 4.5},
    }
    assert sorted((each.name, sorted(each.labels.items()), each.value) for each in read_plain(older)) == sorted(
        (each.name, sorted(each.labels.items()), each.value) for each in read(text)
    )


def test_processes_that_do_not_respond_or_are_of_an_earlier_version_have_what_is_known() -> None:
    earlier: Any = document(role="edge")
    for field in ("counters", "http", "certificates", "build"):
        del earlier[field]
    broker = document(role="broker", streams=None, counters=None, http=None, peers=[], links=[], services={})
    text, older = texts(
        process(None, "provider-lap-top.v2.3", ready=False),
        process(earlier, "edge-tunnel.0", ready=False),
        process(document(role="edge"), "edge-tunnel.1"),
        process(broker, "broker-tunnel.0"),
    )
    assert len(read(text)) == len(read_plain(older))
    up = {
        tuple(each.labels[key] for key in ("role", "name", "slot")): each.value
        for each in read(text)
        if each.name == "goreprox_up"
    }
    assert up == {
        ("provider", "lap-top.v2", "3"): 0,
        ("edge", "tunnel", "0"): 1,
        ("edge", "tunnel", "1"): 1,
        ("broker", "tunnel", "0"): 1,
    }
    of_broker = {each.name for each in read(text) if each.labels["role"] == "broker"}
    assert not {name for name in of_broker if name.startswith(("goreprox_stream", "goreprox_http", "goreprox_peers"))}
    assert not read(texts()[0])


def test_only_who_accepts_the_older_format_alone_gets_it() -> None:
    for accept in ("", "*/*", "application/openmetrics-text,text/plain;q=0.5"):
        assert written([], accept)[1].startswith("application/openmetrics-text; version=1.0.0")
    assert written([], "text/plain, */*;q=0.1")[1].startswith("text/plain; version=0.0.4")


@pytest.mark.programs
def test_promtool_accepts_the_metrics_and_their_names() -> None:
    both = process(document()), process(document(role="edge"), "edge-tunnel.1")
    assert promtool("check", "metrics", given=texts(*both)[1]) == ""


def test_the_page_has_a_row_for_each_metric_with_its_labels() -> None:
    rows = dict(re.findall(r"^\| `(goreprox_\w+)` \| \w+ \| (.*?) \| .+ \|$", PAGE, re.MULTILINE))
    assert {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows.items()} == KNOWN


def expressions() -> list[str]:
    """Return what the alerts and the dashboard ask Prometheus for."""
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    found += [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    found += [each["expr"] for each in board["annotations"]["list"]]
    return [expression.replace("$__rate_interval", "5m") for expression in found]


@pytest.mark.parametrize("expression", expressions())
def test_alerts_and_the_dashboard_name_metrics_and_labels_that_there_are(expression: str) -> None:
    series = {name for known in KNOWN for name in (known, *(f"{known}{end}" for end in ("_bucket", "_sum", "_count")))}
    assert set(re.findall(r"goreprox_\w+", expression)) <= series
    by = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(",")}
    allowed = OF_PROCESS | {"instance", "le"} | {label for name in KNOWN if name in expression for label in KNOWN[name]}
    assert by <= allowed


def test_alerts_name_reasons_of_ends_that_there_are() -> None:
    named = {code for codes in re.findall(r'code=~"([^"]+)"', " ".join(expressions())) for code in codes.split("|")}
    assert named and named <= {code.value for code in EndCode}


def test_the_dashboard_shows_every_metric() -> None:
    asked = " ".join(expressions())
    assert not {name for name in KNOWN if name not in asked} - {
        "goreprox_up",  # an alert
        "goreprox_dialing",
        "goreprox_path_in_use",
        "goreprox_broker_peers",
    }
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.programs
def test_promtool_accepts_the_alerts_and_what_the_dashboard_asks(tmp_path: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", str(RULES))
    asked = [{"record": f"asked:{number}", "expr": each} for number, each in enumerate(expressions())]
    file = tmp_path / "asked.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": asked}]}), encoding="utf-8")
    assert f"SUCCESS: {len(asked)} rules found" in promtool("check", "rules", str(file))


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    given = {"role": "server", "name": "t", "slot": "0", "instance": "i"} | labels
    return {
        "series": f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in given.items())}}}",
        "values": values,
    }


FIRES: dict[str, list[dict[str, str]]] = {
    "GoreproxNotResponding": [series("goreprox_up", "0x30")],
    "GoreproxDashboardDown": [series("up", "0x30", job="goreprox")],
    "GoreproxNotReady": [series("goreprox_ready", "0x30"), series("goreprox_draining", "0x30")],
    "GoreproxRestarted": [series("goreprox_start_time_seconds", "0+1x30")],
    "GoreproxLinkDown": [series("goreprox_link_up", "0x30", broker="b")],
    "GoreproxNoProvider": [series("goreprox_service_providers", "0x30", service="web")],
    "GoreproxClientsWait": [series("goreprox_waiting_clients", "1x30")],
    "GoreproxFull": [series("goreprox_streams_open", "95x30"), series("goreprox_streams_limit", "100x30")],
    "GoreproxOutages": [series("goreprox_outages_total", "0+1x30")],
    "GoreproxStreamsLost": [series("goreprox_stream_ends_total", "0+1x30", code="peer_lost")],
    "GoreproxDialFailures": [series("goreprox_dial_failures_total", "0+5x30", service="web")],
    "GoreproxHttpErrors": [
        series("goreprox_http_requests_total", "0+10x30", service="web", status="502"),
        series("goreprox_http_requests_total", "0+90x30", service="web", status="200"),
    ],
    "GoreproxMessagesDropped": [series("goreprox_broker_dropped_messages_total", "0+500x30")],
    "GoreproxCertificateExpires": [
        series("goreprox_certificate_expiry_timestamp_seconds", "86400x90", option="tls-cert", file="c.pem")
    ],
}
QUIET = [
    series("goreprox_up", "1x90"),
    series("up", "1x90", job="goreprox"),
    series("goreprox_ready", "1x90"),
    series("goreprox_draining", "0x90"),
    series("goreprox_start_time_seconds", "1x90"),
    series("goreprox_link_up", "1x90", broker="b"),
    series("goreprox_service_providers", "1x90", service="web"),
    series("goreprox_waiting_clients", "0x90"),
    series("goreprox_streams_open", "5x90"),
    series("goreprox_streams_limit", "100x90"),
    series("goreprox_outages_total", "0x90"),
    series("goreprox_stream_ends_total", "0+9x90", code="done"),
    series("goreprox_dial_failures_total", "1x90", service="web"),
    series("goreprox_http_requests_total", "0+1x90", service="web", status="502"),
    series("goreprox_http_requests_total", "0+99x90", service="web", status="200"),
    series("goreprox_broker_dropped_messages_total", "0+1x90"),
    series("goreprox_certificate_expiry_timestamp_seconds", "8640000x90", option="tls-cert", file="c.pem"),
]


@pytest.mark.programs
def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert {rule["alert"] for rule in rules} == set(FIRES)
    tests: list[dict[str, Any]] = []
    for rule in rules:
        minutes = 80 if rule["alert"] == "GoreproxCertificateExpires" else 25
        # `promtool test rules` compares labels and annotations; the values are not the matter here.
        asked = f'count(ALERTS{{alertname="{rule["alert"]}",alertstate="firing"}})'
        for given, value in ((FIRES[rule["alert"]], 1), (QUIET, 0)):
            wanted = [{"labels": "{}", "value": value}] if value else []
            expected = [{"expr": asked, "eval_time": f"{minutes}m", "exp_samples": wanted}]
            tests.append({"interval": "1m", "input_series": given, "promql_expr_test": expected})
    file = tmp_path / "tests.yml"
    made = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(made), encoding="utf-8")
    assert "SUCCESS" in promtool("test", "rules", str(file))
