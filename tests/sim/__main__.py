"""Replay seeds of cluster simulations: `python -m tests.sim SEED`, a range FIRST-LAST, or FIRST- with `--seconds`."""

import argparse
import itertools
import sys
import time
from dataclasses import dataclass

from tests.sim.cluster import Cluster
from tests.sim.plan import Plan, draw, is_quiet, report, run, shrink


@dataclass(slots=True)
class Sums:
    """Totals of the clusters of one kind."""

    kind: str
    passed: int = 0
    cpu_s: float = 0.0
    simulated_s: float = 0.0
    events: int = 0
    faults: int = 0
    clients: int = 0
    bytes_checked: int = 0

    def add(self, plan: Plan, cluster: Cluster, cpu_s: float) -> None:
        """Add a cluster that passed."""
        self.passed += 1
        self.cpu_s += cpu_s
        self.simulated_s += cluster.world.now
        self.events += cluster.world.events
        self.faults += len(plan.faults)
        self.clients += len(cluster.clients)
        self.bytes_checked += cluster.oracle.bytes_checked

    def __str__(self) -> str:
        return (
            f"{self.passed} passed, {self.kind}: {self.simulated_s:.0f} simulated s, {self.events} events, "
            f"{self.faults} faults, {self.clients} clients, {self.bytes_checked} bytes checked in {self.cpu_s:.1f} s "
            f"of CPU: {self.simulated_s / self.cpu_s:.0f} simulated s/s and {self.events / self.cpu_s:.0f} events/s"
        )


def main() -> int:
    """Run seeds; print the last events of each that fails, on the smallest plan found."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seeds", metavar="SEED", help="a number, FIRST-LAST, or FIRST- for all from there on")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further seed after so long")
    parser.add_argument("--trace", type=int, default=60, help="lines of the trace to print")
    parser.add_argument("--whole", action="store_true", help="do not look for a smaller plan")
    options = parser.parse_args()
    failed = 0
    busy, quiet = Sums("busy"), Sums("quiet")
    began = time.monotonic()
    first, dash, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1) if last or not dash else itertools.count(int(first))
    for seed in seeds:
        if time.monotonic() - began > options.seconds:
            break
        plan = draw(seed)
        cpu_s = time.process_time()
        try:
            cluster = run(plan)
        except Exception as exc:  # noqa: BLE001 -- whatever a seed brings about
            failed += 1
            if not options.whole:
                plan = shrink(plan)
            sys.stdout.write(report(plan, _again(plan) or exc, lines=options.trace) + "\n")
            sys.stdout.write(f"FAILED; replay: python -m tests.sim {seed}\n")
            continue
        (quiet if is_quiet(seed) else busy).add(plan, cluster, time.process_time() - cpu_s)
    for sums in (busy, quiet):
        if sums.passed:
            sys.stdout.write(f"{sums}\n")
    sys.stdout.write(f"{failed} failed\n")
    return 1 if failed else 0


def _again(plan: Plan) -> BaseException | None:
    try:
        run(plan)
    except Exception as exc:  # noqa: BLE001 -- whatever a seed brings about
        return exc
    return None


if __name__ == "__main__":
    sys.exit(main())
