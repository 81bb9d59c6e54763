"""Replay seeds of cluster simulations: `python -m tests.sim SEED`, a range FIRST-LAST, or FIRST- with `--seconds`."""

import argparse
import itertools
import sys
import time

from tests.sim.plan import Plan, draw, report, run, shrink


def main() -> int:
    """Run each seed; print the trace of one that fails, on the smallest plan found."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seeds", metavar="SEED", help="a number, FIRST-LAST, or FIRST- for all from there on")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further seed after so long")
    parser.add_argument("--trace", type=int, default=60, help="lines of the trace to print")
    parser.add_argument("--whole", action="store_true", help="do not look for a smaller plan")
    options = parser.parse_args()
    ran = failed = events = faults = clients = checked = 0
    simulated_s = 0.0
    began = time.process_time()
    first, dash, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1) if last or not dash else itertools.count(int(first))
    for seed in seeds:
        if time.process_time() - began > options.seconds:
            break
        plan = draw(seed)
        try:
            cluster = run(plan)
        except Exception as exc:  # noqa: BLE001 -- whatever a seed brings about
            failed += 1
            if not options.whole:
                plan = shrink(plan)
            sys.stdout.write(report(plan, _again(plan) or exc, lines=options.trace) + "\n")
            sys.stdout.write(f"FAILED; replay: python -m tests.sim {seed}\n")
            continue
        ran += 1
        events += cluster.world.events
        simulated_s += cluster.world.now
        faults += len(plan.faults)
        clients += len(cluster.clients)
        checked += cluster.oracle.bytes_checked
    took_s = time.process_time() - began
    sys.stdout.write(
        f"{ran} passed, {failed} failed: {simulated_s:.0f} simulated s, {events} events, {faults} faults, "
        f"{clients} clients, {checked} bytes checked in {took_s:.1f} s of CPU: "
        f"{simulated_s / took_s:.0f} simulated s and {events / took_s:.0f} events per second\n"
    )
    return 1 if failed else 0


def _again(plan: Plan) -> BaseException | None:
    try:
        run(plan)
    except Exception as exc:  # noqa: BLE001 -- whatever a seed brings about
        return exc
    return None


sys.exit(main())
