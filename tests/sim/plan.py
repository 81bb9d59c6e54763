"""Draws from a seed what happens to a cluster: clients, what they and their targets do, and faults.

A plan is data, and each item draws from a generator of its own: a plan without some of its items is a plan, too, so a
failing one can be made smaller.

Of eight seeds in a row one is quiet: an hour of a few streams with little traffic, and faults about as long as the
grace. The others are up to a minute of traffic, too dense in events for long outages.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from goreprox.tunnel.driver import FORGET_S
from tests.sim.cluster import Client, Cluster
from tests.sim.far import KIB, Program
from tests.sim.world import Violation

REST_S = 60.0
"""Once all faults are over, streams must end within the grace and this."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A client at an edge, and what it and its target do."""

    at: float
    edge: str
    client: Program
    target: Program


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong; times in seconds."""

    at: float
    lasts: float
    kind: str
    where: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A cluster, and all that happens to it."""

    seed: int
    topology: dict[str, Any]
    arrivals: tuple[Arrival, ...]
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        faults = [f"  {f.at:7.2f} s for {f.lasts:6.2f} s: {f.kind} {' '.join(f.where)}" for f in self.faults]
        return "\n".join([f"{self.topology}, {len(self.arrivals)} clients", *faults])


def is_quiet(seed: int) -> bool:
    """Whether the plan of a seed is a quiet one."""
    return seed % 8 == 0


def draw(seed: int) -> Plan:
    """Return the plan of a seed."""
    dice = random.Random(seed)
    topology = _topology(dice)
    return _quiet(seed, dice, topology) if is_quiet(seed) else _busy(seed, dice, topology)


def _topology(dice: random.Random) -> dict[str, Any]:
    return {
        "edges": dice.choice([1, 1, 2, 3]),
        "brokers": dice.choice([1, 2, 2, 3]),
        "providers": dice.choice([1, 2, 2, 3]),
        "grace_s": dice.choice([60.0, 60.0, 60.0, 20.0]),
        "latency": dice.choice([0.0005, 0.005, 0.05]),
        "rate": dice.choice([2e6, 20e6, 100e6]),
        "buffer": dice.choice([4 * KIB, 64 * KIB, 256 * KIB]),
        "memory": dice.choice([2, 8, 64]) * KIB * KIB,
    }


def _quiet(seed: int, dice: random.Random, topology: dict[str, Any]) -> Plan:
    seconds = 3600.0
    topology["provider_grace_s"] = grace_s = 30.0 if seed % 32 == 0 else topology["grace_s"]
    topology["brokers"] = dice.choice([1, 1, 2])
    topology["max_connections"] = 40
    slots = {letter: [f"{letter}{i}" for i in range(topology[kind])] for letter, kind in _KINDS.items()}
    arrivals = []
    for index in range(dice.randint(2, 40)):
        arrival = _arrival(random.Random(f"{seed} {index}"), index, seconds, slots["e"], crowd=False)
        for program in (arrival.client, arrival.target):
            program.total = min(program.total, 60 * KIB)
            program.pause = dice.choice([0.02, 1.0, 10.0, 60.0])
        arrivals.append(arrival)
    faults = [
        replace(
            _fault(random.Random(f"{seed} f{index}"), seconds, slots),
            lasts=dice.choice([1.0, grace_s / 2, grace_s - 13.0, grace_s + 7.0, 2 * grace_s]),
        )
        for index in range(dice.choice([3, 10, 25]))
    ]
    if seed % 32 == 16:  # added later, so the other seeds keep their plans
        for index in range(4):
            asleep = random.Random(f"{seed} s{index}")
            slot = asleep.choice(slots["e"] + slots["p"])
            faults.append(Fault(seconds * asleep.random(), grace_s + FORGET_S + 20.0, "suspend", (slot,)))
    if seed % 4 == 1:  # as above
        faults += [Fault(seconds * dice.random(), 0.0, "upgrade", (dice.choice(slots["e"]),)) for _ in range(6)]
    return Plan(seed, topology, tuple(arrivals), tuple(sorted(faults, key=lambda fault: fault.at)))


def _busy(seed: int, dice: random.Random, topology: dict[str, Any]) -> Plan:
    crowd = dice.random() < 0.1
    seconds = dice.choice([10.0, 30.0, 60.0])
    count = dice.randint(500, 2000) if crowd else dice.randint(5, 60)
    topology["max_connections"] = 4096 if crowd else dice.choice([40, 128])
    topology["memory"] = max(topology["memory"], topology["max_connections"] * 8 * KIB)
    slots = {letter: [f"{letter}{i}" for i in range(topology[kind])] for letter, kind in _KINDS.items()}
    arrivals = [_arrival(random.Random(f"{seed} {i}"), i, seconds, slots["e"], crowd=crowd) for i in range(count)]
    faults = [_fault(random.Random(f"{seed} f{i}"), seconds, slots) for i in range(dice.choice([0, 2, 6, 12]))]
    if topology["brokers"] > 1 and dice.random() < 0.2:
        faults.append(Fault(seconds * dice.random(), 0.0, "gone", ("b0",)))
    if seed % 8 == 5:  # added later, so the other seeds keep their plans
        anyone = [slot for group in slots.values() for slot in group]
        faults.append(Fault(seconds * dice.random(), 15.0, "disorder messages", (dice.choice(anyone),)))
    several = [group[0] for group in (slots["e"], slots["p"]) if len(group) > 1]
    if seed % 16 == 12 and several:  # as above
        faults.append(Fault(seconds * dice.random(), 0.0, "gone", (dice.choice(several),)))
    if seed % 4 == 3:  # as above
        faults += [Fault(seconds * dice.random(), 0.0, "upgrade", (dice.choice(slots["p"]),)) for _ in range(6)]
    if seed % 4 == 1:  # as above
        faults += [Fault(seconds * dice.random(), 0.0, "upgrade", (dice.choice(slots["e"]),)) for _ in range(6)]
    return Plan(seed, topology, tuple(arrivals), tuple(sorted(faults, key=lambda fault: fault.at)))


_KINDS = {"e": "edges", "b": "brokers", "p": "providers"}


def _arrival(dice: random.Random, index: int, seconds: float, edges: Sequence[str], *, crowd: bool) -> Arrival:
    programs = [_program(dice, 2 * index + 1 + side, seconds, crowd=crowd) for side in range(2)]
    if programs[0].eof == programs[1].eof == "read":
        programs[0].eof = "written"
    return Arrival(seconds * dice.random(), dice.choice(edges), programs[0], programs[1])


def _program(dice: random.Random, seed: int, seconds: float, *, crowd: bool) -> Program:
    small = crowd or dice.random() < 0.5
    return Program(
        seed,
        total=dice.choice([0, 1, 300, 5 * KIB] if small else [60 * KIB, 400 * KIB, 1500 * KIB]),
        chunk=dice.choice([100, 5 * KIB] if small else [16 * KIB, 64 * KIB]),
        pause=dice.choice([0.001, 0.02, 1.0] if small else [0.001, 0.02, 0.2]),
        read_chunk=dice.choice([4 * KIB, 64 * KIB, 1 << 30]),
        read_pause=dice.choice([0.0, 0.001, 0.05]),
        stop_reading_at=dice.choice([0, 20 * KIB, 200 * KIB]) if dice.random() < 0.1 else None,
        reset_at=seconds / 2 * dice.random() if dice.random() < 0.1 else None,
        eof=dice.choice(["written", "read"]),
    )


def _fault(dice: random.Random, seconds: float, slots: dict[str, list[str]]) -> Fault:
    kind = dice.choice(sorted(_FAULTS.keys() - {"disorder messages", "upgrade"}))
    peer, broker = dice.choice(slots["e"] + slots["p"]), dice.choice(slots["b"])
    anyone = dice.choice([slot for group in slots.values() for slot in group])
    where: tuple[str, ...]
    match kind:
        case "block" | "slow":
            where = dice.choice([(peer, broker), (broker, peer)])
        case "cut" | "partition":
            where = (peer, broker)
        case "refuse" | "hang dials" | "drain":
            where = (dice.choice(slots["p"]),)
        case "kill":
            where = (dice.choice([broker, broker, peer]),)
        case _:
            where = (anyone,)
    return Fault(seconds * dice.random(), dice.choice([0.05, 1.0, 5.0, 10.0, 15.0]), kind, where)


def _counted(counter: str) -> Callable[[Cluster, Fault], Callable[[], object]]:
    def begin(cluster: Cluster, fault: Fault) -> Callable[[], object]:
        counts: Any = getattr(cluster.net, counter)
        key: Any = fault.where if len(fault.where) > 1 else fault.where[0]
        counts[key] += 1
        return lambda: counts.subtract([key])

    return begin


def _partition(cluster: Cluster, fault: Fault) -> Callable[[], object]:
    a, b = fault.where
    pairs = [(a, b), (b, a)]
    cluster.net.blocked.update(pairs)
    return lambda: cluster.net.blocked.subtract(pairs)


def _cut(cluster: Cluster, fault: Fault) -> Callable[[], object]:
    for wire in list(cluster.net.wires):
        if {wire.link.process.slot, wire.broker.process.slot} == set(fault.where):
            wire.close(cluster.world.random.choice(["link", "broker"]))
    return lambda: None


def _stop(state: str) -> Callable[[Cluster, Fault], Callable[[], object]]:
    def begin(cluster: Cluster, fault: Fault) -> Callable[[], object]:
        process = cluster.process(fault.where[0])
        if not process.running:
            return lambda: None
        process.stop("frozen" if state == "suspended" else state)
        return lambda: process.resume(suspended_s=fault.lasts if state == "suspended" else 0.0)

    return begin


def _kill(cluster: Cluster, fault: Fault) -> Callable[[], object]:
    cluster.kill(fault.where[0])
    return lambda: cluster.restart(fault.where[0])


def _gone(cluster: Cluster, fault: Fault) -> Callable[[], object]:
    cluster.gone.add(fault.where[0])
    cluster.kill(fault.where[0])
    return lambda: None


def _drain(cluster: Cluster, fault: Fault) -> Callable[[], object]:
    cluster.shut_down(fault.where[0], fault.lasts)
    return lambda: cluster.world.after(3.0, cluster.restart, fault.where[0])


def _upgrade(cluster: Cluster, fault: Fault) -> Callable[[], object]:
    cluster.upgrade(fault.where[0])
    return lambda: None


def _dials(failure: str) -> Callable[[Cluster, Fault], Callable[[], object]]:
    def begin(cluster: Cluster, fault: Fault) -> Callable[[], object]:
        cluster.dial_failure[fault.where[0]] = failure
        return lambda: cluster.dial_failure.pop(fault.where[0], None)

    return begin


_FAULTS: dict[str, Callable[[Cluster, Fault], Callable[[], object]]] = {
    "block": _counted("blocked"),
    "slow": _counted("slow"),
    "lose messages": _counted("lossy"),
    "double messages": _counted("doubling"),
    "disorder messages": _counted("disordering"),
    "partition": _partition,
    "cut": _cut,
    "freeze": _stop("frozen"),
    "hang": _stop("hung"),
    "suspend": _stop("suspended"),
    "kill": _kill,
    "drain": _drain,
    "refuse": _dials("refuse"),
    "hang dials": _dials("hang"),
    "upgrade": _upgrade,
}
"""By kind: begins a fault, and returns what ends it."""


Look = tuple[float, Callable[[Cluster], None]]
"""When to inspect a cluster, and how."""


def run(plan: Plan, look_at: Look | None = None) -> Cluster:
    """Let a plan happen, repair everything, and check that all streams end as they must.

    Raises:
        Violation: the cluster broke its promise. Any other exception is one of the code under test.
    """
    cluster = Cluster(plan.seed, **plan.topology)
    if look_at is not None:
        cluster.world.at(look_at[0], look_at[1], cluster)
    with cluster.installed():
        try:
            _run(cluster, plan)
        except BaseException as exc:
            exc.cluster = cluster  # type: ignore[attr-defined]
            raise
    return cluster


def _run(cluster: Cluster, plan: Plan) -> None:
    world = cluster.world
    cluster.start()
    end = 0.0
    for arrival in plan.arrivals:
        client = Client(cluster, replace(arrival.client), replace(arrival.target), arrival.edge, cluster.buffer)
        world.at(arrival.at, cluster.connect, client)
        end = max(end, arrival.at)
    for fault in plan.faults:
        world.at(fault.at, _begin, cluster, fault)
        end = max(end, fault.at + fault.lasts)
    world.run_until(end + 4.0)
    world.note("all faults are over")
    for slot in (*cluster.broker_slots, *cluster.nodes):
        cluster.restart(slot)

    def speed_up() -> None:
        for far in (*cluster.clients, *cluster.targets):
            if not far.over:
                far.speed_up()
        world.after(1.0, speed_up)

    speed_up()
    deadline = world.now + cluster.grace_s + REST_S
    while world.now < deadline and not cluster.oracle.at_rest():
        world.run_until(world.now + 1.0)
    world.run_until(world.now + 15.0)  # links come back, peer lists settle
    cluster.oracle.check_rest()


def _begin(cluster: Cluster, fault: Fault) -> None:
    cluster.world.note(f"{fault.kind} {' '.join(fault.where)} for {fault.lasts} s")
    ends = (_gone if fault.kind == "gone" else _FAULTS[fault.kind])(cluster, fault)
    cluster.oracle.look()

    def end() -> None:
        cluster.world.note(f"{fault.kind} {' '.join(fault.where)} is over")
        ends()
        cluster.oracle.look()

    cluster.world.after(fault.lasts, end)


def shrink(plan: Plan, *, runs: int = 60) -> Plan:
    """Return a smaller plan that fails, too: parts of it are left out, first halves, then ever smaller ones."""

    def fails(smaller: Plan) -> bool:
        nonlocal runs
        runs -= 1
        try:
            run(smaller)
        except Exception:  # noqa: BLE001 -- whatever fails
            return True
        return False

    for field in ("faults", "arrivals"):
        size = max(len(getattr(plan, field)) // 2, 1)
        while True:
            items = getattr(plan, field)
            start = 0
            while start < len(items) and runs > 0:
                smaller = replace(plan, **{field: items[:start] + items[start + size :]})
                if fails(smaller):
                    plan, items = smaller, getattr(smaller, field)
                else:
                    start += size
            if size == 1 or runs <= 0:
                break
            size //= 2
    return plan


def report(plan: Plan, error: BaseException, *, lines: int = 60) -> str:
    """Describe a failure: the last events before it, the plan and the error."""
    cluster: Cluster | None = getattr(error, "cluster", None)
    trace = list(cluster.world.trace)[-lines:] if cluster is not None and lines else []
    kind = "" if isinstance(error, Violation) else f"{type(error).__name__}: "
    return "\n".join(["last events:", *trace, f"plan: {plan}", f"seed {plan.seed}: {kind}{error}"])
