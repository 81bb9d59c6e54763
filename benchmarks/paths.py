"""Whether a path follows its link: downloads and requests between two hosts, over plain TCP and over goreprox.

python -m benchmarks.paths [ROW ...] [--rounds N]

The target and its provider are on the first host, clients and the server on the second: so downloads leave over the
provider's link. Both sides of a row take turns, each with a link of its own, and with the same losses.
"""

import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import cyclopts

from benchmarks.flows import STEP_S
from benchmarks.hosts import ADDRESSES, Link, Shape, joined
from benchmarks.local import BenchmarkError

TARGET, FOREIGN, CLIENTS, PROVIDERS, EDGES = 7001, 7002, 7080, 7887, 7888
SETTLE_S: Final = 2.0
"""Left out at the start of what is measured at a steady pace."""


@dataclass
class Run:
    """One side on one pair of hosts."""

    link: Link
    folder: Path
    tunnel: bool
    stack: contextlib.ExitStack
    ports: list[int]
    """Where clients of the second host connect; one for each provider, or edge."""

    def start(self, host: int, *words: str) -> "subprocess.Popen[str]":
        """Start a Python module on a host."""
        log = self.stack.enter_context((self.folder / f"{len(list(self.folder.iterdir()))}.log").open("w"))
        process = subprocess.Popen(
            self.link.command(host, sys.executable, "-m", *words), stdout=subprocess.PIPE, stderr=log, text=True
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def flow(self, kind: str, seconds: float, *, number: int = 0, foreign: bool = False) -> "Flow":
        """Start a client on the second host; return once its first byte has arrived."""
        if foreign:
            address, port = ADDRESSES[0], FOREIGN
        elif self.tunnel:
            address, port = "127.0.0.1", self.ports[number]
        else:
            address, port = ADDRESSES[0], TARGET
        process = self.start(1, "benchmarks.flows", kind, address, str(port), str(seconds))
        _expect_go(process)
        return Flow(self, process)

    def goreprox(self, host: int, role: str, *words: str) -> None:
        """Start a role of goreprox, without keys."""
        common = ["--runtime-dir", str(self.folder / "run"), "--insecure", "--log-level", "info"]
        self.start(host, "goreprox", role, *words, *common)

    def words(self) -> str:
        """Return the last lines of all logs."""
        return "; ".join(path.read_text()[-800:] for path in sorted(self.folder.glob("*.log")))

    def outages(self) -> int:
        """Return how many epochs were lost, by the logs."""
        return sum(path.read_text().count("event=peer_down") for path in self.folder.glob("*.log"))


@dataclass
class Flow:
    """A client that runs."""

    run: Run
    process: "subprocess.Popen[str]"

    def result(self) -> list[float]:
        """Wait for what it saw."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchmarkError(f"a flow has ended without a result: {self.run.words()}")
        found: list[float] = json.loads(line)
        return found


def _expect_go(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    if process.stdout.readline() != "go\n":
        raise BenchmarkError("a program ended before its first byte")


def mbit(steps: list[float], start_s: float = 0.0, end_s: float = math.inf) -> float:
    """Return the rate of a download between two moments after its start."""
    first, last = round(start_s / STEP_S), min(len(steps), round(min(end_s, 1e6) / STEP_S))
    return sum(steps[first:last]) * 8 / 1e6 / ((last - first) * STEP_S)


def silence_s(steps: list[float]) -> float:
    """Return the longest time without a byte."""
    longest = run = 0
    for step in steps:
        run = 0 if step else run + 1
        longest = max(longest, run)
    return longest * STEP_S


@contextlib.contextmanager
def running(shape: Shape, *, tunnel: bool, layout: str = "one") -> Iterator[Run]:
    """Start a side: `one` provider, `providers` (two), `edges` (two, one provider), `broker` (the link behind it)."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        link = stack.enter_context(joined(replace(shape, loss=0.0)))
        run = Run(link, folder, tunnel, stack, [CLIENTS])
        for port in (TARGET, FOREIGN):
            _expect_go(run.start(0, "benchmarks.flows", "serve", "0.0.0.0", str(port)))
        if tunnel:
            LAYOUTS[layout](run)
            for port in run.ports:
                _wait(run, port)
        link.shape(shape)
        yield run


def _one(run: Run) -> None:
    run.goreprox(1, "server", "--listen", str(CLIENTS), "--providers", str(PROVIDERS))
    run.goreprox(0, "provider", f"127.0.0.1:{TARGET}", "--server", f"{ADDRESSES[1]}:{PROVIDERS}")


def _providers(run: Run) -> None:
    run.ports = [CLIENTS, CLIENTS + 1]
    run.goreprox(1, "server", "--listen", f"{CLIENTS}=a", "--listen", f"{CLIENTS + 1}=b", "--providers", str(PROVIDERS))
    for name in "ab":
        to = f"{ADDRESSES[1]}:{PROVIDERS}"
        run.goreprox(0, "provider", f"{name}=127.0.0.1:{TARGET}", "--server", to, "--name", name)


def _edges(run: Run) -> None:
    run.ports = [CLIENTS, CLIENTS + 1]
    run.goreprox(1, "broker", "--edges", str(EDGES), "--providers", str(PROVIDERS))
    for port in run.ports:
        run.goreprox(1, "edge", "--listen", str(port), "--broker", f"127.0.0.1:{EDGES}", "--name", f"edge{port}")
    run.goreprox(0, "provider", f"127.0.0.1:{TARGET}", "--server", f"{ADDRESSES[1]}:{PROVIDERS}")


def _broker(run: Run) -> None:
    run.goreprox(0, "broker", "--edges", str(EDGES), "--providers", str(PROVIDERS))
    run.goreprox(1, "edge", "--listen", str(CLIENTS), "--broker", f"{ADDRESSES[0]}:{EDGES}")
    run.goreprox(0, "provider", f"127.0.0.1:{TARGET}", "--server", f"127.0.0.1:{PROVIDERS}")


LAYOUTS: Final = {"one": _one, "providers": _providers, "edges": _edges, "broker": _broker}


def _wait(run: Run, port: int) -> None:
    give_up = time.monotonic() + 20
    while True:
        words = ("benchmarks.flows", "ping", "127.0.0.1", str(port), "0.01")
        done = subprocess.run(run.link.command(1, sys.executable, "-m", *words), capture_output=True, check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > give_up:
            raise BenchmarkError(f"port {port} does not respond: {done.stderr[-200:]!r}")
        time.sleep(0.1)  # programs are starting, and nobody tells


Figures = dict[str, float]
MB: Final = 1_000_000


def rising(*, tunnel: bool) -> Figures:
    """The round trip rises from 1 to 50 to 200 ms in mid-stream, at 100 Mbit/s, queue 500 kB."""
    figures: Figures = {}
    with running(Shape(100, 0.5, MB // 2), tunnel=tunnel) as run:
        flow = run.flow("download", 36)
        time.sleep(6)  # how long the first round trip lasts
        run.link.shape(Shape(100, 25, MB // 2))
        time.sleep(15)  # and the second
        run.link.shape(Shape(100, 100, MB // 2))
        steps = flow.result()
        for name, start in (("1 ms", 2), ("50 ms", 9), ("200 ms", 26)):
            figures[name] = mbit(steps, start, start + (4 if start == 2 else 10))
    return figures


def _beside(queue: int) -> Callable[..., Figures]:
    def beside(*, tunnel: bool) -> Figures:
        with running(Shape(50, 10, queue), tunnel=tunnel) as run:
            run.flow("download", 30, foreign=True)
            steps = run.flow("download", 22).result()
        return {"Mbit/s": mbit(steps, SETTLE_S)}

    beside.__doc__ = f"A download beside somebody else's, 50 Mbit/s, 20 ms, queue {queue // 1000} kB."
    return beside


def _share(layout: str, doc: str) -> Callable[..., Figures]:
    def share(*, tunnel: bool) -> Figures:
        with running(Shape(50, 10, MB // 4), tunnel=tunnel, layout=layout) as run:
            flows = [run.flow("download", 30, number=number) for number in range(2)]
            rates = [mbit(flow.result(), 5) for flow in flows]
        return {"both": sum(rates), "ratio": max(rates) / max(min(rates), 0.001)}

    share.__doc__ = f"{doc}, 50 Mbit/s, 20 ms, queue 250 kB."
    return share


def loss(*, tunnel: bool) -> Figures:
    """2 % of packets are lost, 100 Mbit/s, 40 ms, queue 500 kB."""
    with running(Shape(100, 20, MB // 2, 0.02), tunnel=tunnel) as run:
        return {"Mbit/s": mbit(run.flow("download", 30).result())}


def falling(*, tunnel: bool) -> Figures:
    """The rate falls from 100 to 1 Mbit/s, 20 ms, queue 250 kB."""
    with running(Shape(100, 10, MB // 4), tunnel=tunnel) as run:
        flow = run.flow("download", 40)
        time.sleep(5)  # how long the link is fast
        run.link.shape(Shape(1, 10, MB // 4))
        steps = flow.result()
        return {"silence": silence_s(steps), "outages": run.outages()}


def _interactive(shape: Shape) -> Callable[..., Figures]:
    def interactive(*, tunnel: bool) -> Figures:
        with running(shape, tunnel=tunnel) as run:
            alone = run.flow("ping", 5).result()
            run.flow("download", 27)
            time.sleep(5)  # until queues are as full as they get
            beside = run.flow("ping", 20).result()
        figures: Figures = {"alone": statistics.median(alone) * 1000}
        for percent in (50, 95, 99):
            figures[f"p{percent}"] = statistics.quantiles(beside, n=100, method="inclusive")[percent - 1] * 1000
        return figures

    interactive.__doc__ = (
        f"Requests beside a download, ms: {shape.mbit:g} Mbit/s, {2 * shape.delay_ms:g} ms, "
        f"queue {shape.queue_bytes // 1000} kB."
    )
    return interactive


def narrow_edge(*, tunnel: bool) -> Figures:
    """The slow link is between broker and edge: 20 Mbit/s, 20 ms, queue 250 kB."""
    with running(Shape(20, 10, MB // 4), tunnel=tunnel, layout="broker") as run:
        flow = run.flow("download", 27)
        time.sleep(5)  # until queues are as full as they get
        pings = run.flow("ping", 15).result()
        return {"Mbit/s": mbit(flow.result(), SETTLE_S), "ping p95": statistics.quantiles(pings, n=20)[18] * 1000}


ROWS: Final[dict[str, Callable[..., Figures]]] = {
    "rising": rising,
    "beside-deep": _beside(MB),
    "beside": _beside(MB // 5),
    "providers": _share("providers", "Two providers on one uplink"),
    "edges": _share("edges", "Two edges with one provider"),
    "loss": loss,
    "falling": falling,
    "fast": _interactive(Shape(100, 10, MB // 4)),
    "slow": _interactive(Shape(1, 20, MB // 4)),
    "narrow-edge": narrow_edge,
}


def main(*rows: str, rounds: int = 3) -> None:
    """Measure rows, all by default."""
    for name in rows or ROWS:
        row = ROWS[name]
        found: dict[bool, list[Figures]] = {False: [], True: []}
        for _ in range(rounds):
            for tunnel in (False, True):
                found[tunnel].append(row(tunnel=tunnel))
        print(f"{name}: {row.__doc__}")
        for tunnel, side in ((False, "plain"), (True, "goreprox")):
            medians = {key: statistics.median(each[key] for each in found[tunnel]) for key in found[tunnel][0]}
            print(f"  {side:9}", *(f"{key} {value:.1f} " for key, value in medians.items()), flush=True)


if __name__ == "__main__":
    cyclopts.run(main)
