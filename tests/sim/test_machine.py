"""Two sessions under every fault, in any order: a state machine that hypothesis drives and shrinks."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.network import KIB, Network

COUNTS = st.sampled_from([1, 100, 5 * KIB, 40 * KIB, 300 * KIB])


class Tunnel(RuleBasedStateMachine):
    """What was written arrives, whole and in order, whatever happens to the paths."""

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.net = Network(seed)
        self.net.connect("a")

    @rule()
    @precondition(lambda self: len(self.net.clients) < 12)
    def open(self) -> None:
        self.net.open()

    @rule(index=st.integers(0, 30), count=COUNTS)
    def write(self, index: int, count: int) -> None:
        if sockets := [*self.net.clients, *self.net.targets.values()]:
            sockets[index % len(sockets)].write(count)

    @rule(index=st.integers(0, 30), count=COUNTS)
    def read(self, index: int, count: int) -> None:
        if sockets := [*self.net.clients, *self.net.targets.values()]:
            sockets[index % len(sockets)].deliver(count, self.net.now)

    @rule(index=st.integers(0, 30))
    def half_close(self, index: int) -> None:
        if sockets := [*self.net.clients, *self.net.targets.values()]:
            sockets[index % len(sockets)].write_eof()

    @rule(index=st.integers(0, 30))
    def reset(self, index: int) -> None:
        if sockets := [*self.net.clients, *self.net.targets.values()]:
            sockets[index % len(sockets)].reset(self.net.now)

    @rule(steps=st.integers(1, 30), deliver=st.booleans())
    def run(self, steps: int, deliver: bool) -> None:
        for _ in range(steps):
            self.net.step(deliver=deliver)

    @rule(path=st.sampled_from("ab"), unseen_by=st.sampled_from(["", "edge", "provider"]))
    def cut(self, path: str, unseen_by: str) -> None:
        if path in self.net.up:
            self.net.cut(path, unseen_by=unseen_by)

    @rule(path=st.sampled_from("ab"))
    def connect(self, path: str) -> None:
        self.net.connect(path)

    @rule(
        loss=st.sampled_from([0.0, 0.05, 0.5]), doubling=st.sampled_from([0.0, 0.3]), disorder=st.sampled_from([0, 0.3])
    )
    def worsen(self, loss: float, doubling: float, disorder: float) -> None:
        self.net.loss, self.net.doubling, self.net.disorder = loss, doubling, disorder

    @rule(end=st.sampled_from(["edge", "provider"]))
    def silence(self, end: str) -> None:
        self.net.mute ^= {end}

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "net"):
            self.net.check()

    def teardown(self) -> None:
        if hasattr(self, "net"):
            self.net.finish()


TestTunnel = Tunnel.TestCase
TestTunnel.settings = settings(stateful_step_count=40, suppress_health_check=list(HealthCheck))
