"""The instruments of the benchmarks: a relay that is as slow as it says, verdicts and checks that can fail."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.behaviour import CHECKS, holds
from benchmarks.local import HOST
from benchmarks.relay import relay
from benchmarks.rows import ROWS, Bound
from benchmarks.sides import BASES
from benchmarks.verdicts import Party, Values, Verdict, judge
from tests.support.waiting import DEADLINE_S

PARTIES = [
    Party("direct", "direct", tunnel=False, encrypted=False),
    Party("fast", "fast", tunnel=True, encrypted=False),
    Party("slow", "slow", tunnel=True, encrypted=True),
    Party("goreprox", "goreprox", tunnel=False, encrypted=False),
]


def verdict(values: Values, row: str, bound: Bound) -> Verdict:
    assert bound in ROWS[row].bounds
    return next(one for one in judge(values, PARTIES) if one.row.key == row and one.bound == bound)


def test_every_row_of_a_bound_is_there() -> None:
    for row in ROWS.values():
        for bound in row.bounds:
            assert not bound.against_row or bound.against_row in ROWS
            assert (bound.relation == "value") == (not bound.against and not bound.against_row)


def test_a_bound_against_every_tunnel_is_held_against_the_best_of_them() -> None:
    bound = Bound("floor", "times", 1.0, against="every tunnel")
    values: Values = {"requests_32": {"goreprox": [20.0], "slow": [10.0], "fast": [25.0]}}
    found = verdict(values, "requests_32", bound)
    assert (found.figure, found.holds, found.where) == (0.8, False, "fast")
    del values["requests_32"]["fast"]
    found = verdict(values, "requests_32", bound)
    assert (found.figure, found.holds, found.where) == (2.0, True, "slow")


def test_ratios_are_taken_within_a_round() -> None:
    bound = Bound("floor", "times", 0.8, against="direct")
    # The machine was ten times slower in the second round; a failed third one counts for nobody.
    values: Values = {"stream": {"goreprox": [90.0, 9.0, None], "direct": [100.0, 10.0, 50.0]}}
    found = verdict(values, "stream", bound)
    assert found.figure == pytest.approx(0.9)
    assert found.holds


def test_the_worst_stall_counts_and_what_was_not_measured_is_no_success() -> None:
    bound = Bound("floor", "value", 0.5)
    assert verdict({"stall": {"goreprox": [0.1, 0.6, 0.1]}}, "stall", bound).holds is False
    assert verdict({"stall": {"goreprox": [None]}}, "stall", bound).holds is None
    assert verdict({}, "stall", bound).holds is None


def test_a_difference_is_held_against_its_bound() -> None:
    bound = Bound("floor", "above", 0.35, against="direct")
    found = verdict({"ping_p50": {"goreprox": [0.5], "direct": [0.1]}}, "ping_p50", bound)
    assert found.figure == pytest.approx(0.4)
    assert found.holds is False


@contextlib.contextmanager
def echo() -> Iterator[int]:
    """Run a server that sends back what it gets."""
    with socket.create_server((HOST, 0)) as listener:

        def serve(sock: socket.socket) -> None:
            with sock, contextlib.suppress(OSError):
                while data := sock.recv(65536):
                    sock.sendall(data)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_path_takes_its_round_trip_and_one_more_for_the_handshake() -> None:
    with echo() as port, relay((HOST, port), round_trip_s=0.1, mbit=0) as link:
        began = time.monotonic()
        with socket.create_connection((HOST, link.port), timeout=DEADLINE_S) as sock:
            sock.sendall(b"a")
            assert sock.recv(1) == b"a"
            met = time.monotonic()
            assert met - began >= 0.2
            sock.sendall(b"b")
            assert sock.recv(1) == b"b"
            assert time.monotonic() - met >= 0.1
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""


def test_a_path_is_not_faster_than_its_rate_and_loses_nothing() -> None:
    data = bytes(range(256)) * 1000  # 256,000 bytes at 8 Mbit/s: 0.256 s
    with echo() as port, relay((HOST, port), round_trip_s=0, mbit=8) as link:
        began = time.monotonic()
        with socket.create_connection((HOST, link.port), timeout=DEADLINE_S) as sock:
            threading.Thread(target=sock.sendall, args=(data,), daemon=True).start()
            got = bytearray()
            while len(got) < len(data):
                got += sock.recv(65536)
        assert time.monotonic() - began >= 0.25
        assert bytes(got) == data


def test_a_cut_path_resets_and_comes_back() -> None:
    with echo() as port, relay((HOST, port), round_trip_s=0, mbit=0) as link:
        with socket.create_connection((HOST, link.port), timeout=DEADLINE_S) as sock:
            sock.sendall(b"a")
            assert sock.recv(1) == b"a"
            before = time.monotonic()
            assert link.cut(0.1) >= before + 0.1
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        with socket.create_connection((HOST, link.port), timeout=DEADLINE_S) as sock:
            sock.sendall(b"b")
            assert sock.recv(1) == b"b"


@pytest.mark.parametrize("check", CHECKS)
def test_a_link_without_a_tunnel_passes_everything_on_and_outlives_nothing(check: str, tmp_path: Path) -> None:
    direct = BASES[0]
    assert direct.key == "direct"
    assert holds(CHECKS[check], direct, tmp_path) is not check.endswith("the link")
