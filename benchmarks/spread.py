"""Where the sessions of edges and providers are, at several brokers, before and after each of a rolling restart.

python -m benchmarks.spread [--brokers N] [--edges N] [--providers N]

Brokers and edges are processes of their own, providers whole ones in a few. A broker is stopped, and started again at
the same ports. Printed are the shares of the brokers, of an even one, once all edges have had time to return.
"""

import contextlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cyclopts

from benchmarks.local import HOST, BenchmarkError, free_port, raise_descriptor_limit, wait_for_listener
from benchmarks.processes import Processes, folder_of
from goreprox.control.client import ask_all
from goreprox.errors import ControlError
from goreprox.protocol.limits import SETTLE_MIN_S

IN_ONE = 8
"""Providers in one process."""
AWAY_S = 2.0
SETTLED_S = 2 * 1.5 * SETTLE_MIN_S
"""From when links are up until their sessions have moved: twice as long where these had moved less than `STEADY_S`
before the loss, as all have here, since the first restart follows the start so soon."""
UP_S = 120.0
LOOK_S = 0.5
Places = dict[tuple[str, str], str]
"""The address of the broker that a pair of an edge and a provider uses, by their incarnations."""


def places(folder: Path) -> tuple[Places, int]:
    """Return where the sessions are that flow, and how many paths there are in all."""
    try:
        replies = ask_all([folder], "status", roles=("edge",))
    except ControlError:  # none runs yet
        return {}, 0
    documents = [reply.result for reply in replies if isinstance(reply.result, dict)]
    paths = [
        ((document["incarnation"], peer["incarnation"]), path)
        for document in documents
        for peer in document["peers"]
        for path in peer["paths"]
    ]
    return {pair: path["label"] for pair, path in paths if path["in_use"]}, len(paths)


def settled(folder: Path, sessions: int, paths: int) -> Places:
    """Wait until there are so many sessions and paths, and as long as sessions take to move; return where they are."""
    give_up = time.monotonic() + UP_S
    while True:
        where, known = places(folder)
        if (len(where), known) == (sessions, paths):
            break
        if time.monotonic() > give_up:
            raise BenchmarkError(f"{len(where)} sessions and {known} paths, expected {sessions} and {paths}")
        time.sleep(LOOK_S)
    time.sleep(SETTLED_S + 1.0)  # what is measured is what they are then
    return places(folder)[0]


def main(*, brokers: int = 4, edges: int = 8, providers: int = 64) -> None:
    """Restart each broker once."""
    raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gp")))
        folder = stack.enter_context(folder_of(top, "run"))
        ports = [(free_port(), free_port()) for _ in range(brokers)]
        running = [_processes(stack, top, f"broker{number}") for number in range(brokers)]
        for each, at in zip(running, ports, strict=True):
            _start_broker(each, at, folder)
        others = _processes(stack, top, "edges")
        joins = [text for _, for_edges in ports for text in ("--broker", f"{HOST}:{for_edges}")]
        for number in range(edges):
            others.start(
                *(sys.executable, "-m", "goreprox", "edge", "--listen", f"{HOST}:{free_port()}", *joins),
                *("--name", f"edge{number}", "--insecure", "--runtime-dir", str(folder), "--log-level", "error"),
            )
        for first in range(0, providers, IN_ONE):
            own = top / f"crowd{first}"
            own.mkdir(mode=0o700)
            words = [str(min(IN_ONE, providers - first)), ",".join(str(at[0]) for at in ports), "1", str(own)]
            others.start(sys.executable, "-m", "benchmarks.crowd", *words)
        pairs = edges * providers
        first_places = settled(folder, pairs, pairs * brokers)
        _report("before", first_places, ports, first_places)
        for number, at in enumerate(ports):
            running[number].stop()
            time.sleep(AWAY_S)  # part of the outage
            _report(f"while broker {number} is away", places(folder)[0], ports, first_places)
            _start_broker(running[number], at, folder)
            _report("  after", settled(folder, pairs, pairs * brokers), ports, first_places)


def _processes(stack: contextlib.ExitStack, top: Path, name: str) -> Processes:
    return stack.enter_context(Processes(stack.enter_context(folder_of(top, name))))


def _start_broker(processes: Processes, at: tuple[int, int], folder: Path) -> None:
    processes.start(
        *(sys.executable, "-m", "goreprox", "broker", "--providers", f"{HOST}:{at[0]}", "--edges", f"{HOST}:{at[1]}"),
        *("--insecure", "--runtime-dir", str(folder), "--log-level", "warning"),
    )
    wait_for_listener(HOST, at[0], processes.check)


def _report(when: str, where: Places, ports: list[tuple[int, int]], before: Places) -> None:
    shares = Counter(where.values())
    even = len(where) / len(ports)
    told = ", ".join(f"{shares[f'{HOST}:{for_edges}'] / even:.2f}" for _, for_edges in ports)
    same = sum(where.get(pair) == label for pair, label in before.items())
    print(f"{when}: {told} of even; {same} of {len(before)} pairs where they were at first", flush=True)


if __name__ == "__main__":
    cyclopts.run(main)
