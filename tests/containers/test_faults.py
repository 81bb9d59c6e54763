"""What happens to networks and hosts between the two ends: transfers both ways and idle connections survive all of it.

Each test has hosts and networks of its own, so all of them run side by side. The client compares SHA-256.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.containers.cluster import TOOLS, Cluster, cluster, eventually

OUTAGE_S = 8.0
"""Longer than the link timeout."""
GRACE_S = 60
"""The default, and what is promised: an outage of that length on the second, whatever the engine takes to begin it."""
LOOKUP_S = 8.0
"""A name that gets no response takes longer; the engine's name server gives up after 10 s."""
STALL_S = 5.0
"""What no healthy link waits for."""
HANG = """
nft add table inet dns
nft 'add chain inet dns in { type filter hook input priority 0; }'  # on the way out it would be an error at once
nft add rule inet dns in ip daddr 127.0.0.11 drop  # the engine's name server in each host
"""
RESOLVE = """
import socket, time
began = time.monotonic()
try:
    socket.getaddrinfo("broker-1", 1)
except OSError:
    print(time.monotonic() - began)
"""


def survive(fault: Callable[[Cluster], None], *traffic: str, brokers: int = 1, outages: int = 1) -> dict[str, Any]:
    """Do `fault` to a tunnel under traffic; return the client's report. `outages`: it must have seen so many."""
    with cluster(brokers=brokers) as hosts:
        client = hosts.traffic("lasting", *traffic)
        fault(hosts)
        report = client.finish()
        assert report["idle"] == 10 and report["up"] > 0 and report["down"] > 0, report
        seen = hosts.outages("provider-1")
        assert seen >= outages, f"{seen} outages: the fault was none"
        return report


def for_a_while(begin: Callable[[], object], end: Callable[[], object], outage_s: float = OUTAGE_S) -> None:
    """Break something, and mend it."""
    begin()
    time.sleep(outage_s)
    end()


def test_connections_survive_a_network_link_that_is_down_for_as_long_as_the_grace() -> None:
    def fault(hosts: Cluster) -> None:
        hosts.inside("provider-1", f"ip link set $I down; sleep {GRACE_S}; ip link set $I up")

    survive(fault)


def test_connections_survive_hosts_that_are_disconnected_and_return() -> None:
    def fault(hosts: Cluster) -> None:
        for n, name in enumerate(("provider-1", "edge-1", "broker-1"), 1):
            for_a_while(lambda: hosts.cut(name), lambda: hosts.mend(name))  # noqa: B023 -- called here
            eventually(lambda: hosts.resumed("provider-1") >= n, "they are connected anew")  # noqa: B023

    survive(fault, outages=3)


def test_connections_survive_hosts_that_return_with_other_addresses() -> None:
    def fault(hosts: Cluster) -> None:
        for n, name in enumerate(("provider-1", "broker-1"), 1):
            before = hosts.address(name)
            hosts.cut(name)
            hosts.host(f"stranger-{n}", ["target"], "middle", image=TOOLS)  # which takes the address
            time.sleep(OUTAGE_S)
            hosts.mend(name)
            assert hosts.address(name) != before
            eventually(lambda: hosts.resumed("provider-1") >= n, "they are connected anew")  # noqa: B023

    survive(fault, outages=2)


def test_connections_survive_hosts_that_sleep() -> None:
    def fault(hosts: Cluster) -> None:
        for n, name in enumerate(("broker-1", "provider-1"), 1):
            for_a_while(lambda: hosts.pause(name), hosts.hosts[name].unpause)  # noqa: B023 -- called here
            eventually(lambda: hosts.resumed("provider-1") >= n, "they are connected anew")  # noqa: B023

    survive(fault, outages=2)


def test_connections_survive_a_killed_and_restarted_broker() -> None:
    def fault(hosts: Cluster) -> None:
        for_a_while(hosts.hosts["broker-1"].kill, hosts.hosts["broker-1"].start, 2)

    survive(fault)


@pytest.mark.parametrize(("percent", "bytes_per_s", "lasting_s"), [(5, 100_000, 15), (30, 1000, 30)])
def test_connections_survive_packet_loss(percent: int, bytes_per_s: int, lasting_s: float) -> None:
    """Of each direction so many, at random."""

    def fault(hosts: Cluster) -> None:
        chains = "".join(
            f"nft 'add chain inet lossy {hook} {{ type filter hook {hook} priority 0; }}'; "
            f"nft add rule inet lossy {hook} {way} $I numgen random mod 100 '<' {percent} counter drop; "
            for hook, way in (("input", "iifname"), ("output", "oifname"))
        )
        hosts.inside("provider-1", f"nft add table inet lossy; {chains}")
        time.sleep(lasting_s)
        rules = hosts.inside("provider-1", "nft list table inet lossy")
        assert "counter packets " in rules and "counter packets 0 " not in rules, rules

    survive(fault, f"--bytes-per-s={bytes_per_s}", outages=0)


def test_connections_survive_a_slow_link() -> None:
    """2 Mbit/s in each direction carry at most 250,000 bytes a second; twice as much is there to be sent."""
    lasting_s = 15.0

    def fault(hosts: Cluster) -> None:
        for name in ("provider-1", "broker-1"):
            hosts.inside(name, "tc qdisc add dev $I root tbf rate 2mbit burst 32kb latency 400ms")
        time.sleep(lasting_s)

    report = survive(fault, "--bytes-per-s=1000000", outages=0)
    assert report["up"] > 0.3 * 250_000 * lasting_s and report["down"] > 0.3 * 250_000 * lasting_s, report


def test_links_return_while_name_servers_hang() -> None:
    def fault(hosts: Cluster) -> None:
        for name in ("provider-1", "edge-1"):
            hosts.inside(name, HANG)
        for_a_while(lambda: hosts.cut("broker-1"), lambda: hosts.mend("broker-1"))

    survive(fault)


def test_the_unresolvable_name_of_a_stopped_broker_delays_no_other_link() -> None:
    """Its name takes long to fail, which is what a name server does that cannot reach another one."""

    def fault(hosts: Cluster) -> None:
        for name in ("provider-1", "edge-1"):
            hosts.inside(name, HANG)
        hosts.hosts["broker-1"].stop(timeout=5)
        assert float(hosts.run("provider-1", "python3", "-c", RESOLVE)) > LOOKUP_S
        time.sleep(OUTAGE_S)
        assert hosts.traffic("short").finish()["failed"] == 0

    report = survive(fault, brokers=2, outages=0)
    assert report["slowest_s"] < STALL_S, report
