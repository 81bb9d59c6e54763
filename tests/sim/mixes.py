"""Mixes of bulk and small requests that fill a slow link: what each client gets, and what it must get at least."""

import itertools
from dataclasses import dataclass

from goreprox.protocol.limits import QUANTUM_MIN
from tests.sim.cluster import Client, Cluster
from tests.sim.far import KIB, Program
from tests.sim.world import Violation

REQUEST = 300
SETTLED_S = 5.0
"""By then all connections of a mix are made, and the rate of the path is known."""
MEASURED_S = 15.0
LOOK_S = 0.05
LEAST_PART = 0.7
"""Of a fair share: the rest is for one turn more or less, headers, and bytes in flight at the start and the end."""
WAIT_TURNS = 3
"""How far a stream may be behind its share, in turns of `QUANTUM_MIN` bytes, which bounds how long it waits."""
IN_FLIGHT_S = 0.3
"""For what was sent before to arrive: 64 KiB, over two wires of 0.5 MB/s."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Downloads beside clients that send one small request after another."""

    rate: float
    """Bytes per second."""
    fetchers: int
    size: int
    """Bytes of each response to a small request."""
    downloads: int = 1
    keep: bool = False
    """Whether a client sends all its requests over one connection."""
    hosts: str = "one"
    """Client addresses: `one` for all, `two` (downloads, others), or `each` its own."""

    @property
    def download_rate(self) -> float:
        """The fair share of each download, bytes per second."""
        return self.rate / (2 * self.downloads if self.hosts == "two" else self.downloads + self.fetchers)

    @property
    def fetch_rate(self) -> float:
        """The fair share of each of the others, bytes per second."""
        return self.rate / (2 * self.fetchers if self.hosts == "two" else self.downloads + self.fetchers)

    def host(self, number: int) -> str:
        """Return the address of a client; downloads have the first numbers."""
        match self.hosts:
            case "one":
                return "10.1.0.1"
            case "two":
                return "10.1.0.1" if number < self.downloads else "10.1.0.2"
            case _:
                return f"10.1.1.{number}"


@dataclass(slots=True)
class Result:
    """What was measured of a mix in `MEASURED_S`."""

    download_rates: list[float]
    """Bytes per second."""
    longest_wait_s: float
    """The longest time in which a download got nothing."""
    fetch_times_s: list[float]


def measure(mix: Mix) -> Result:
    """Run a mix."""
    cluster = Cluster(0, edges=1, brokers=1, providers=1, rate=mix.rate, latency=0.005)
    with cluster.installed():
        return _Run(cluster, mix).result()


class _Run:
    def __init__(self, cluster: Cluster, mix: Mix) -> None:
        self._cluster = cluster
        self._mix = mix
        self._seeds = itertools.count(1, 2)
        self._downloads: list[Client] = []
        self._fetch_times_s: list[float] = []
        self._conversations: dict[Client, tuple[int, float]] = {}
        """How many responses each client has, and since when."""
        self._moved: dict[Client, tuple[int, float]] = {}
        self._longest_wait_s = 0.0

    def result(self) -> Result:
        cluster, mix, world = self._cluster, self._mix, self._cluster.world
        cluster.start()
        world.run_until(2.0)
        for number in range(mix.downloads):
            endless = int(mix.rate * (SETTLED_S + MEASURED_S)) * 2
            self._downloads.append(self._client(number, Program(0, total=endless, chunk=64 * KIB)))
        world.run_until(3.0)  # the others meet downloads at full speed
        for number in range(mix.downloads, mix.downloads + mix.fetchers):
            self._converse(number) if mix.keep else self._fetch(number)
        self._watch(2.0 + SETTLED_S)
        before = [client.read for client in self._downloads]
        self._fetch_times_s.clear()
        self._moved = {client: (client.read, world.now) for client in self._downloads}
        self._watch(world.now + MEASURED_S)
        rates = [(client.read - start) / MEASURED_S for client, start in zip(self._downloads, before, strict=True)]
        return Result(rates, self._longest_wait_s, self._fetch_times_s)

    def _client(self, number: int, target: Program, client: Program | None = None) -> Client:
        seed = next(self._seeds)
        program = client or Program(0, total=REQUEST, eof="read")
        program.seed, target.seed = seed, seed + 1
        new = Client(self._cluster, program, target, "e0", self._cluster.buffer)
        new.host = self._mix.host(number)
        self._cluster.connect(new)
        return new

    def _fetch(self, number: int) -> None:
        """Send a request over a new connection, and another when that is over."""
        began = self._cluster.world.now
        client = self._client(number, Program(0, total=self._mix.size))

        def again() -> None:
            self._fetch_times_s.append(self._cluster.world.now - began)
            self._fetch(number)

        client.on_over = again

    def _converse(self, number: int) -> None:
        """Send one request after another over one connection."""
        size = self._mix.size
        program = Program(0, total=1000 * REQUEST, lead=REQUEST, per_read=(size, REQUEST))
        client = self._client(number, Program(0, total=1000 * size, per_read=(REQUEST, size)), program)
        self._conversations[client] = 0, self._cluster.world.now

    def _watch(self, until: float) -> None:
        while self._cluster.world.now < until:
            self._cluster.world.run_until(self._cluster.world.now + LOOK_S)
            self._look()

    def _look(self) -> None:
        now = self._cluster.world.now
        for client, (read, since) in self._moved.items():
            if client.read > read:
                self._moved[client] = client.read, now
            self._longest_wait_s = max(self._longest_wait_s, now - since)
        for client, (responses, since) in self._conversations.items():
            if client.read // self._mix.size > responses:
                self._conversations[client] = client.read // self._mix.size, now
                self._fetch_times_s.append(now - since)


def check(mix: Mix) -> None:
    """Run a mix, and check what everybody gets.

    Raises:
        Violation: somebody gets too little, or waits too long.
    """
    result = measure(mix)
    least = min(result.download_rates)
    if least < LEAST_PART * mix.download_rate:
        raise Violation(f"{mix}: a download gets {least:.0f} bytes/s, its fair share is {mix.download_rate:.0f}")
    bound_s = WAIT_TURNS * QUANTUM_MIN / mix.download_rate + IN_FLIGHT_S
    if result.longest_wait_s > bound_s:
        raise Violation(f"{mix}: a download waits {result.longest_wait_s:.2f} s, expected at most {bound_s:.2f} s")
    slowest_s = max(result.fetch_times_s, default=MEASURED_S)
    if slowest_s > (bound_s := mix.size / mix.fetch_rate / LEAST_PART + IN_FLIGHT_S):
        raise Violation(f"{mix}: a fetch takes {slowest_s:.2f} s, expected at most {bound_s:.2f} s")
