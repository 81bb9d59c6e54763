"""Replay seeds of cluster simulations: `python -m tests.sim SEED ...`, or `python -m tests.sim FIRST-LAST`."""

import argparse
import sys
import time

from tests.sim.plan import Plan, draw, report, run, shrink


def main() -> int:
    """Run each seed; print the trace of one that fails, on the smallest plan found."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seeds", nargs="+", metavar="SEED", help="a number, or FIRST-LAST")
    parser.add_argument("--trace", type=int, default=60, help="lines of the trace to print")
    parser.add_argument("--whole", action="store_true", help="do not look for a smaller plan")
    options = parser.parse_args()
    failed = events = clients = checked = 0
    simulated_s = 0.0
    began = time.process_time()
    for word in options.seeds:
        first, _, last = word.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            plan = draw(seed)
            try:
                cluster = run(plan)
            except Exception as exc:  # noqa: BLE001 -- whatever a seed brings about
                failed += 1
                if not options.whole:
                    plan = shrink(plan)
                sys.stdout.write(report(plan, _again(plan) or exc, lines=options.trace) + "\n")
                continue
            events += cluster.world.events
            simulated_s += cluster.world.now
            clients += len(cluster.clients)
            checked += cluster.bytes_checked
    took_s = time.process_time() - began
    sys.stdout.write(
        f"{failed} failed; {simulated_s:.0f} simulated s, {events} events, {clients} clients, {checked} bytes in "
        f"{took_s:.1f} s: {simulated_s / took_s:.0f} simulated s and {events / took_s:.0f} events per second\n"
    )
    return 1 if failed else 0


def _again(plan: Plan) -> BaseException | None:
    try:
        run(plan)
    except Exception as exc:  # noqa: BLE001 -- whatever a seed brings about
        return exc
    return None


sys.exit(main())
