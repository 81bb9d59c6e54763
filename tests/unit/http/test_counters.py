"""Requests are counted by service and status, in bounded memory."""

import pytest

from goreprox.http import counters
from goreprox.http.commands import CountRequest
from goreprox.http.counters import BOUNDS_S, RequestCounters
from goreprox.http.exchange import Site
from goreprox.protocol.fields import Fields
from tests.support.gateway import OK, Talk


def test_requests_are_counted_by_service_and_status() -> None:
    counted = RequestCounters()
    for service, status in (("web", 200), ("web", 200), ("web", 503), ("", 400), ("web", 0), ("web", 299)):
        counted.add(service, status, None)
    assert counted.by_status("web") == {"200": 2, "503": 1, "none": 1, "other": 1}
    assert counted.by_status("") == {"400": 1}
    assert not counted.durations


def test_durations_are_in_the_first_bucket_whose_bound_they_do_not_exceed() -> None:
    counted = RequestCounters()
    for duration_s in (0.0, BOUNDS_S[0], BOUNDS_S[0] * 1.01, BOUNDS_S[-1], BOUNDS_S[-1] + 1):
        counted.add("web", 200, duration_s)
    counts = counted.durations["web"].counts
    assert (counts[0], counts[1], counts[-2], counts[-1], sum(counts)) == (2, 1, 1, 1, 5)
    assert counted.durations["web"].sum_s == pytest.approx(2 * BOUNDS_S[-1] + 1 + BOUNDS_S[0] * 2.01)


def test_services_beyond_the_bound_count_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "SERVICES", 2)
    counted = RequestCounters()
    for service in ("a", "b", "c", "d", "a"):
        counted.add(service, 200, 1.0)
    assert {service: counted.by_status(service) for service in counted.requests} == {
        "a": {"200": 2},
        "b": {"200": 1},
        "": {"200": 2},
    }
    assert set(counted.durations) == {"a", "b", ""}


def test_counters_go_on_after_an_upgrade() -> None:
    counted, after = RequestCounters(), RequestCounters()
    for service, status, duration_s in (("web", 200, 0.001), ("web", 299, 7.0), ("", 0, None), ("api", 503, 0.1)):
        counted.add(service, status, duration_s)
    after.take_over(Fields(counted.export()))
    assert after.export() == counted.export() and after.by_status("web") == {"200": 1, "other": 1}
    after.add("web", 200, 0.001)
    assert after.durations["web"].counts[0] == 2


def test_durations_in_other_buckets_begin_anew() -> None:
    counted = RequestCounters()
    counted.take_over(Fields({"requests": {}, "durations": {"web": {"counts": [1, 2], "sum_s": 1.0}}}))
    assert not counted.durations


def test_any_status_of_a_target_takes_one_of_a_few_numbers() -> None:
    counted = RequestCounters()
    for status in range(1000):
        counted.add("web", status, None)
    assert len(counted.requests["web"]) < 70
    assert sum(counted.by_status("web").values()) == 1000


@pytest.mark.parametrize("logs", [False, True])
def test_each_request_is_counted_once_whether_it_is_logged_or_not(logs: bool) -> None:
    talk = Talk(Site("web", logs=logs)).client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").target(OK).client(b"GET\r\n\r\n")
    wanted = [("web", 200), ("", 400)]
    assert [(each.service, each.status) for each in talk.seen.logged] == (wanted if logs else [])
    assert talk.seen.counted == ([] if logs else [CountRequest(*each) for each in wanted])
