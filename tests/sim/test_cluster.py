"""Whole clusters on virtual time: seeds, cases that seeds once found, and seeded defects that they must catch."""

import functools
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import pytest

from brokers.presence import Presence
from brokers.switch import Output, Switch
from goreprox.net import sockets
from goreprox.process.feed import KEPT
from goreprox.protocol.events import Ack, Code
from goreprox.protocol.fair import FairQueue
from goreprox.protocol.limits import SETTLE_MIN_S
from goreprox.protocol.multiplexer import Multiplexer
from goreprox.protocol.paths import Paths
from goreprox.protocol.receiver import ReceiveHalf
from goreprox.protocol.session import Session
from goreprox.protocol.state import State
from goreprox.tunnel.bridge import Bridge
from goreprox.tunnel.driver import Driver
from goreprox.tunnel.peer import Peer
from tests.sim.cluster import Cluster
from tests.sim.defects import Patch, accept_stale_epochs, do_not_repeat_open
from tests.sim.far import KIB, Program
from tests.sim.plan import Arrival, Fault, Plan, draw, report, run, shrink
from tests.sim.world import Violation

SEEDS = 40
"""Always the same; `make fresh` draws others."""
FEW = 4
CHUNK = 4
FAILED_ONCE = (
    *(14, 55, 59, 68, 81, 115, 127, 176, 194, 207, 219, 294, 323, 410, 432),
    *(9077, 80024, 80728, 700129, 700138, 823689264),
)
"""Seeds that found a defect of the code or of the simulator."""
ENOUGH = 40
"""How many seeds may be needed to catch a seeded defect."""


def check(plan: Plan) -> Cluster:
    """Run a plan. A failure tells how to replay it, and the last events of the smallest plan found."""
    try:
        return run(plan)
    except Exception:  # noqa: BLE001 -- whatever a plan brings about
        smaller = shrink(plan, runs=20)
    try:
        run(smaller)
    except Exception as exc:
        raise AssertionError(f"{report(smaller, exc)}\nreplay: python -m tests.sim {plan.seed}") from exc
    pytest.fail(f"seed {plan.seed} failed, a second run did not")


@pytest.mark.parametrize(
    "first", [*range(0, FEW, CHUNK), *(pytest.param(at, marks=pytest.mark.long) for at in range(FEW, SEEDS, CHUNK))]
)
def test_clusters_keep_the_promise(first: int) -> None:
    clusters = [check(draw(seed)) for seed in range(first, first + CHUNK)]
    assert sum(cluster.oracle.bytes_checked for cluster in clusters) > 1 << 20
    assert sum(len(cluster.targets) for cluster in clusters) > 10
    assert sum(cluster.moved for cluster in clusters) > 0


@pytest.mark.long
@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_seeds_that_failed_once_pass(seed: int) -> None:
    check(draw(seed))


@pytest.mark.long
def test_a_seed_always_makes_the_same_history() -> None:
    assert len({run(draw(7)).world.digest for _ in range(2)}) == 1
    assert run(draw(8)).world.digest != run(draw(7)).world.digest


# What seeds found.


def plan_of(*arrivals: Arrival, faults: tuple[Fault, ...] = (), **topology: Any) -> Plan:
    return Plan(0, {"edges": 1, "brokers": 1, "providers": 1, "max_connections": 128} | topology, arrivals, faults)


def test_a_reset_after_both_ends_of_file_leaves_no_stream_behind() -> None:
    client = Program(1, total=1, stop_reading_at=0, reset_at=2.0)
    check(plan_of(Arrival(5.0, "e0", client, Program(2, total=60 * KIB)), buffer=4 * KIB))


def test_a_silent_client_gets_its_target_at_once() -> None:
    cluster = check(plan_of(Arrival(5.0, "e0", Program(1, eof="read"), Program(2, total=5 * KIB))))
    assert len(cluster.targets) == 1
    assert cluster.clients[0].read == 5 * KIB


def test_a_stream_opened_and_aborted_in_one_message_is_neither_dialed_nor_refused() -> None:
    faults = (Fault(4.995, 10.0, "drain", ("p0",)), Fault(5.0, 0.0, "drain", ("e0",)))
    cluster = check(plan_of(Arrival(5.0, "e0", Program(1), Program(2)), faults=faults))
    assert cluster.clients[0].was_reset
    assert not cluster.targets


def test_a_refused_client_waits_for_a_provider_that_is_resuming() -> None:
    arrivals = [Arrival(5.0, "e0", Program(2 * i + 1, total=1), Program(2 * i + 2, total=1)) for i in range(4)]
    faults = (Fault(4.0, 10.0, "refuse", ("p0",)), Fault(5.2, 0.0, "cut", ("p1", "b0")))
    cluster = check(plan_of(*arrivals, faults=faults, providers=2, latency=0.5))
    assert any(client.refused_by for client in cluster.clients)
    assert all(client.read == 1 for client in cluster.clients)


def test_streams_that_a_provider_dials_for_at_its_end_go_to_another() -> None:
    arrivals = [Arrival(5.0, "e0", Program(2 * i + 1, total=1), Program(2 * i + 2, total=1)) for i in range(4)]
    faults = (Fault(4.0, 10.0, "hang dials", ("p0",)), Fault(6.0, 1.0, "drain", ("p0",)))
    cluster = check(plan_of(*arrivals, faults=faults, providers=2))
    assert any(client.refused_by for client in cluster.clients)
    assert all(client.read == 1 for client in cluster.clients)


def test_streams_share_a_path_fairly() -> None:
    fairness()


def fairness() -> None:
    """Check that several uploads over one slow link get on equally."""
    uploads = [
        Arrival(2.0, "e0", Program(2 * i + 1, total=4000 * KIB, chunk=64 * KIB), Program(2 * i + 2)) for i in range(4)
    ]
    far: list[list[int]] = []

    def look(cluster: Cluster) -> None:
        far.append([target.read for target in cluster.targets])

    run(plan_of(*uploads, rate=2e6), look_at=(4.0, look))
    assert min(far[0]) > max(far[0]) / 2, far


def test_a_provider_whose_loop_hangs_leaves_the_peer_list() -> None:
    hang()


def hang() -> None:
    run(plan_of(faults=(Fault(2.0, 20.0, "hang", ("p0",)),)))


def test_a_process_that_died_leaves_the_peer_list() -> None:
    dead_for_good()


def dead_for_good() -> None:
    run(plan_of(faults=(Fault(2.0, 0.0, "gone", ("p0",)),), providers=2))


def test_streams_do_not_outlive_the_grace() -> None:
    cluster = long_outage()
    assert all(far.was_reset for far in (*cluster.clients, *cluster.targets))


def long_outage() -> Cluster:
    return run(plan_of(slow_pair(), faults=(Fault(6.0, 60.0, "partition", ("e0", "b0")),), grace_s=20.0))


NEVER_READS = Program(1, stop_reading_at=0, eof="read")
READS_FOR_TEN_SECONDS = Program(1, read_chunk=2 * KIB, read_pause=2.0, stop_reading_at=10 * KIB, eof="read")


@pytest.mark.parametrize(
    ("written", "reader", "waits_s"),
    [
        (60 * KIB, NEVER_READS, 10.0),  # at the reader's end
        (1000 * KIB, NEVER_READS, 10.0 + 10.0),  # at the other end, as the window is full, and then there
        (1000 * KIB, READS_FOR_TEN_SECONDS, 8.0 + 10.0 + 10.0),
    ],
)
def test_reset_is_delivered_after_linger_when_the_client_stops_reading(
    written: int, reader: Program, waits_s: float
) -> None:
    writer = Program(2, total=written, chunk=100 * KIB, reset_at=2.0)
    due = 5.0 + 2.0 + waits_s
    seen: list[bool] = []

    def look(cluster: Cluster) -> None:
        (client,) = cluster.clients
        assert client.sock is not None
        seen.append(client.sock.our_rst)
        if len(seen) == 1:
            cluster.world.after(2.0, look, cluster)

    not_yet_over = Fault(due + 5.0, 0.0, "cut", ("p0", "b0"))
    plan = plan_of(Arrival(5.0, "e0", reader, writer), faults=(not_yet_over,), buffer=16 * KIB)
    run(plan, look_at=(due - 1.0, look))
    assert seen == [False, True]


# Where sessions are: spread over brokers, and back after each restart, but never after a broker that comes and goes.


def moves(cluster: Cluster) -> int:
    """Return how often edges moved a session from one broker to another."""
    return sum(
        event.name == "peer_moved"
        for slot in cluster.edge_slots
        for event in cluster.nodes[slot].driver.feed.after(0, KEPT)
    )


def on_brokers(cluster: Cluster) -> dict[tuple[str, str], str]:
    """Return by pair of edge and provider which broker its session uses."""
    return {
        (slot, peer.info.name.name): path.path_id.label  # type: ignore[attr-defined] # opaque to sessions
        for slot in cluster.edge_slots
        for peer in cluster.nodes[slot].driver.peers.values()
        if (path := peer.session.path) is not None
    }


def rolling_restart(edges: int = 4, providers: int = 6) -> list[dict[tuple[str, str], str]]:
    """Restart each of 4 brokers under traffic; return where sessions were before, and some seconds after each."""
    faults = tuple(Fault(30.0 * (index + 1), 1.0, "kill", (f"b{index}",)) for index in range(4))
    seen: list[dict[tuple[str, str], str]] = []

    def look(cluster: Cluster) -> None:
        seen.append(on_brokers(cluster))
        if len(seen) < 4:
            cluster.world.after(30.0, look, cluster)

    endless = Program(1, total=1000 * KIB, chunk=KIB, pause=0.1), Program(2, total=1000 * KIB, chunk=KIB, pause=0.1)
    plan = plan_of(Arrival(5.0, "e0", *endless), faults=faults, edges=edges, brokers=4, providers=providers)
    cluster = run(plan, look_at=(29.0, look))
    seen.append(on_brokers(cluster))
    assert len(seen) == 5 and all(each == seen[0] for each in seen), seen
    assert not any(far.was_reset for far in (*cluster.clients, *cluster.targets))
    assert moves(cluster) <= 2 * len(seen[0])  # to the preferred path at the start, and after its restart
    return seen


def test_sessions_are_where_they_were_after_each_of_a_rolling_restart() -> None:
    rolling_restart()


@pytest.mark.long
def test_eight_edges_and_sixty_four_providers_are_spread_evenly_over_four_brokers_also_after_restarts() -> None:
    for where in rolling_restart(edges=8, providers=64):
        shares = Counter(where.values())
        assert len(where) == 8 * 64 and len(shares) == 4
        assert all(0.75 * 128 <= share <= 1.25 * 128 for share in shares.values()), shares


def test_sessions_do_not_follow_a_broker_that_comes_and_goes() -> None:
    flapping()


def flapping() -> None:
    """Kill a broker again and again; check how often sessions move there."""
    for up_s in (4.0, 20.0):
        restarts = int(400.0 / (up_s + 1.0))
        faults = tuple(Fault(20.0 + (up_s + 1.0) * index, 1.0, "kill", ("b0",)) for index in range(restarts))
        cluster = run(plan_of(faults=faults, edges=3, brokers=2, providers=4))
        after_start = moves(cluster) / 12
        assert after_start <= (2.0 if up_s == 4.0 else 4.0), f"{after_start} moves a session, up for {up_s} s at a time"


# Suspend: the clock of sessions goes on, the timers of the loop do not.

WAKE_S = 6.0
"""After a suspend every process reads the clock within 5 s."""


def slow_pair() -> Arrival:
    """Return a client and a target that both write for five seconds."""
    programs = [Program(seed, total=400 * KIB, chunk=16 * KIB, pause=0.2) for seed in (1, 2)]
    return Arrival(5.0, "e0", *programs)


@pytest.mark.parametrize("slot", ["e0", "b0", "p0"])
def test_a_suspend_shorter_than_the_grace_is_an_outage_that_loses_nothing(slot: str) -> None:
    cluster = check(plan_of(slow_pair(), faults=(Fault(6.0, 55.0, "suspend", (slot,)),), grace_s=60.0))
    assert [far.read for far in (*cluster.clients, *cluster.targets)] == [400 * KIB] * 2
    assert not any(far.was_reset for far in (*cluster.clients, *cluster.targets))
    assert cluster.world.now > 60.0


@pytest.mark.parametrize("asleep_s", [100.0, 200.0, 400.0])  # the peers of empty sessions are forgotten after 140 s
@pytest.mark.parametrize("slot", ["e0", "p0"])
def test_a_suspend_beyond_the_grace_ends_in_resets_as_soon_as_the_machine_wakes(slot: str, asleep_s: float) -> None:
    plan = plan_of(slow_pair(), faults=(Fault(6.0, asleep_s, "suspend", (slot,)),), grace_s=20.0)
    seen: list[bool] = []

    def look(cluster: Cluster) -> None:
        seen.extend(far.was_reset for far in (*cluster.clients, *cluster.targets))

    run(plan, look_at=(6.0 + asleep_s + WAKE_S, look))
    assert seen == [True, True]


@pytest.mark.parametrize("at", [5.2, 5.6, 5.8])  # the Open is sent, has arrived, is accepted
def test_what_was_delivered_before_a_long_suspend_is_not_delivered_again(at: float) -> None:
    arrival = Arrival(5.0, "e0", Program(1, total=2000), Program(2, total=1))
    run(plan_of(arrival, faults=(Fault(at, 200.0, "suspend", ("e0",)),), grace_s=20.0, latency=0.5))


# Seeded defects.

Trial = Callable[[], object]


def _move_streams_of_a_silent_provider(patch: pytest.MonkeyPatch) -> None:
    original = Driver.peer_down

    def peer_down(self: Driver, carrier: Any, peer_id: bytes, reason: str) -> None:
        original(self, carrier, peer_id, reason)
        peer: Peer | None = self.peers.get(peer_id)
        for stream in list(peer.session.streams.values()) if peer is not None else []:
            if stream.state is State.OPENING:
                assert peer is not None
                peer.session.multiplexer._forget(stream)
                stream.detach()
                self._application.stream_refused(peer, stream, Code.TARGET, "silence")

    patch.setattr(Driver, "peer_down", peer_down)


def _ignore_the_predecessor(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Driver, "_bury", lambda *_: None)


def _use_one_path_only(patch: pytest.MonkeyPatch) -> None:
    original = Session.path_up

    def path_up(self: Session, path_id: object, now: float) -> None:
        if self.path is None or self.path.path_id == path_id:
            original(self, path_id, now)

    patch.setattr(Session, "path_up", path_up)


def _let_no_lease_expire(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Presence, "expired", lambda *_: [])


def _send_no_peer_list(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Switch, "_peer_list", lambda *_: [])


def _never_report_that_a_peer_is_gone(patch: pytest.MonkeyPatch) -> None:
    lost = Switch.lost

    def forget(self: Switch, key: Hashable, reason: str) -> list[Output]:
        lost(self, key, reason)
        return []

    patch.setattr(Switch, "lost", forget)


def _let_one_stream_hog_the_path(patch: pytest.MonkeyPatch) -> None:
    original = FairQueue.done
    patch.setattr(FairQueue, "done", lambda self, flow, _, *, more: original(self, flow, 0, more=more))


def _leak_the_budget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReceiveHalf, "discard", lambda self: self.chunks.clear())


def _account_for_the_window_in_place_of_what_was_granted(patch: pytest.MonkeyPatch) -> None:
    original = ReceiveHalf.take_ack

    def take_ack(self: ReceiveHalf) -> tuple[int, int]:
        told = original(self)
        self.pool_used_bytes = self._budget.account(used=self.pool_used_bytes, holding=self._window)
        return told

    patch.setattr(ReceiveHalf, "take_ack", take_ack)


def _end_with_fin(patch: pytest.MonkeyPatch) -> None:
    original = Bridge._close
    patch.setattr(Bridge, "_close", lambda self, **_: original(self, finish=True))


def _reset_ahead_of_the_send_queue(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sockets, "unsent_bytes", lambda _: 0)


def _never_report_room(patch: pytest.MonkeyPatch) -> None:
    def receive_ack(self: Multiplexer, event: Ack) -> None:
        if stream := self.find(event.stream):
            stream.receive_ack(event.delivered, event.limit)
            self.stream_ready(stream)
            self._finish_if_done(stream)

    patch.setattr(Multiplexer, "receive_ack", receive_ack)


def _move_to_paths_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Paths, "_settled_at", lambda _self, _rank, now: now)


def _wait_no_longer_after_a_failed_move(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("goreprox.protocol.paths.SETTLE_MAX_S", SETTLE_MIN_S)


def _stay_on_any_path(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Paths, "better", lambda *_: None)


def _let_streams_outlive_the_grace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("goreprox.protocol.epochs.ALLOWANCE_S", 60.0)


def seed(number: int) -> Trial:
    """Return the run of a seed."""
    return functools.partial(run, draw(number))


DEFECTS: dict[Patch, Trial] = {
    accept_stale_epochs: seed(21),
    do_not_repeat_open: seed(20),
    _move_streams_of_a_silent_provider: seed(20),
    _ignore_the_predecessor: seed(11),
    _use_one_path_only: seed(10),
    _let_no_lease_expire: hang,
    _send_no_peer_list: fairness,
    _never_report_that_a_peer_is_gone: dead_for_good,
    _let_one_stream_hog_the_path: fairness,
    _leak_the_budget: seed(32),
    _account_for_the_window_in_place_of_what_was_granted: seed(20),
    _end_with_fin: seed(10),
    _reset_ahead_of_the_send_queue: seed(23),
    _never_report_room: fairness,
    _move_to_paths_at_once: flapping,
    _wait_no_longer_after_a_failed_move: flapping,
    _stay_on_any_path: rolling_restart,
    _let_streams_outlive_the_grace: long_outage,
}
"""Each with what catches it soonest. Where that has changed, a search finds another."""


@pytest.mark.pure
def test_a_failing_plan_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    _leak_the_budget(monkeypatch)
    plan = draw(14)
    smaller = shrink(plan)
    assert len(smaller.arrivals) == 1 and not smaller.faults
    with pytest.raises(Violation) as caught:
        run(smaller)
    assert "seed 14: " in report(smaller, caught.value)


@pytest.mark.long
@pytest.mark.pure
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__.strip("_"))
def test_a_defect_is_caught(defect: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    small_first = sorted(map(draw, range(ENOUGH)), key=lambda plan: len(plan.arrivals))
    seeds: list[Trial] = [functools.partial(run, plan) for plan in small_first]
    for trial in (DEFECTS[defect], fairness, hang, long_outage, dead_for_good, *seeds):
        try:
            trial()
        except Exception:  # noqa: BLE001 -- whatever shows the defect is a catch
            return
    pytest.fail(f"{ENOUGH} clusters did not notice")
