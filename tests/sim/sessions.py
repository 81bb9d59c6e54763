"""Two sessions on a network that fails at random; `python -m tests.sim.sessions SEED [LAST]` replays seeds."""

import argparse
import random
import sys
import time
import traceback

from tests.support.network import KIB, Network

STEPS = 250


def scenario(seed: int) -> Network:
    """Do random things to random sockets on a failing network; then repair it, and check how every stream ends."""
    net = Network(seed)
    rng = random.Random(seed)
    net.connect("a")
    for _ in range(STEPS):
        sockets = [*net.clients, *net.targets.values()]
        action = rng.random()
        if action < 0.06 and len(net.clients) < 12:
            net.open()
        elif action < 0.40 and sockets:
            rng.choice(sockets).write(rng.choice([1, 100, 5 * KIB, 40 * KIB, 300 * KIB]))
        elif action < 0.66 and sockets:
            rng.choice(sockets).deliver(rng.choice([1, 100, 5 * KIB, 1 << 30]), net.now)
        elif action < 0.69 and sockets:
            rng.choice(sockets).write_eof()
        elif action < 0.71 and sockets:
            rng.choice(sockets).reset(net.now)
        else:
            _break(net, rng, action)
        net.step(rng.choice([0.001, 0.01, 0.1]), deliver=rng.random() < 0.9)
    net.finish()
    return net


def _break(net: Network, rng: random.Random, action: float) -> None:
    """Break something, or nothing."""
    if action < 0.73:
        if net.up:
            net.cut(rng.choice(sorted(map(str, net.up))), unseen_by=rng.choice(["", "edge", "provider"]))
    elif action < 0.76:
        net.connect(rng.choice("ab"))
    elif action < 0.77:
        net.loss, net.doubling = rng.choice([0.0, 0.05, 0.3]), rng.choice([0.0, 0.3])
        net.disorder = rng.choice([0.0, 0.2])
    elif action < 0.775:
        net.mute ^= {rng.choice(["edge", "provider"])}
    elif action < 0.79:
        net.upgrade(rng.choice(["edge", "provider"]), unseen=rng.random() < 0.5)


def main() -> int:
    """Run seeds; print a traceback for each that fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.sessions", description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int, nargs="?")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further seed after so long")
    options = parser.parse_args()
    ran = failed = outages = checked = 0
    simulated_s = 0.0
    began = time.process_time()
    for seed in range(options.first, (options.last or options.first) + 1):
        if time.process_time() - began > options.seconds:
            break
        try:
            net = scenario(seed)
        except Exception:  # noqa: BLE001 -- whatever a seed brings about
            failed += 1
            sys.stdout.write(f"{traceback.format_exc()}FAILED; replay: python -m tests.sim.sessions {seed}\n")
            continue
        ran += 1
        simulated_s += net.now
        outages += sum(session.counters.outages for session in net.sessions.values())
        checked += sum(len(socket.read) for socket in (*net.clients, *net.targets.values()))
    sys.stdout.write(
        f"sessions: {ran} passed, {failed} failed: {simulated_s:.0f} simulated s, {outages} faults, "
        f"{checked} bytes checked\n"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
