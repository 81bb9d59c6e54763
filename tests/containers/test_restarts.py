"""Hosts that are restarted and stopped on purpose: what was begun ends well."""

from concurrent.futures import ThreadPoolExecutor

from tests.containers.cluster import STOP_S, cluster, eventually


def test_restarting_all_hosts_one_after_another_breaks_no_connection() -> None:
    with cluster(brokers=2, edges=2, providers=2) as hosts:
        clients = [hosts.traffic("short", edge=f"edge-{n}") for n in (1, 2)]
        for kind in ("broker", "edge", "provider"):
            for name in (f"{kind}-1", f"{kind}-2"):
                hosts.hosts[name].restart(timeout=STOP_S)
                linked = ("edge-1", "edge-2", "provider-1", "provider-2")
                eventually(lambda: all(map(hosts.linked, linked)), f"{name} is back")  # noqa: B023 -- awaited here
        for client in clients:
            report = client.finish()
            assert report["failed"] == 0 and report["done"] > 50, report


def test_stopping_a_host_drains_it() -> None:
    with cluster() as hosts, ThreadPoolExecutor(1) as pool:
        for name in ("edge-1", "provider-1"):
            client = hosts.traffic("lasting")
            host = hosts.hosts[name]
            stopping = pool.submit(host.stop, timeout=STOP_S)
            eventually(lambda: hosts.status(name).get("draining"), f"{name} drains")  # noqa: B023 -- awaited here
            client.finish()
            stopping.result()
            host.reload()
            assert host.attrs["State"]["ExitCode"] == 0
            host.start()
