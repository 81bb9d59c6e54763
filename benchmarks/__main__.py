"""The command line: print what is measured and for how long, run the rounds, write the report.

python -m benchmarks --quick          two minutes, one round
python -m benchmarks --docs docs      everything; writes docs/benchmarks.md and its files
"""

import contextlib
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import cyclopts
import zmq
from cyclopts import Parameter
from rich.console import Console

from benchmarks import report
from benchmarks.groups import GROUPS, QUICK, Group, Settings, idle_streams, measure
from benchmarks.local import BenchmarkError, find, prefer, raise_descriptor_limit
from benchmarks.peers import SIDES
from benchmarks.processes import Processes
from benchmarks.sides import Kind, Side
from benchmarks.targets import Targets
from benchmarks.verdicts import Party
from goreprox import __version__, build

ROUNDS = 5
START_S = 1.5  # a side's start and end, as an estimate
# In a quick run the other sides are measured in these groups only.
QUICK_SIDES = ("direct", "ssh", "goreprox", "goreprox-keys")
QUICK_GROUPS = ("web", "bulk", "providers-1", "providers-2", "providers-4", "providers-8")
T = TypeVar("T")
_Keys = Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")]


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    rounds: int
    groups: list[Group]
    sides: list[Side]
    settings: Settings
    quick: bool

    def steps(self) -> list[tuple[Group, Side]]:
        """Return one round: group by group, side after side."""
        return [(group, side) for group in self.groups for side in self.sides if self._wants(group, side)]

    def _wants(self, group: Group, side: Side) -> bool:
        return group.only(side) and (not self.quick or group.key in QUICK_GROUPS or side.key in QUICK_SIDES)

    def estimate_s(self) -> float:
        """Return about how long it takes."""
        return self.rounds * sum(START_S + group.estimate_s(self.settings) for group, _ in self.steps())


def main(
    *,
    quick: bool = False,
    rounds: int | None = None,
    sides: _Keys = None,
    groups: _Keys = None,
    peers: Path | None = None,
    docs: Path | None = None,
    redraw: Path | None = None,
) -> None:
    """Measure goreprox beside its peers on this machine, in interleaved rounds.

    Parameters
    ----------
    quick
        One short round, with fewer peers: not for publication.
    rounds
        How many rounds. [default: 5, or 1 if quick]
    sides
        Measure only these, like `--sides direct haproxy goreprox`. [default: all that are installed]
    groups
        Measure only these, like `--groups web bulk`. [default: all]
    peers
        Folder with more programs, which win over those on PATH.
    docs
        Folder of benchmarks.md, into which the results are written. [default: only print them]
    redraw
        Measure nothing: show the results of this JSON file, and write them to `docs` if given.
    """
    console = Console()
    if not console.is_terminal:
        console.width = 160
    if redraw is not None:
        results = report.Results.load(redraw)
    else:
        if peers is not None:
            prefer(peers)
        for program in ("nginx", "wrk"):
            if find(program) is None:
                raise BenchmarkError(f"{program} is missing; install it by the system's package manager")
        settings = QUICK if quick else Settings()
        wanted = _chosen("side", SIDES, lambda side: side.key, sides)
        plan = Plan(
            rounds or (1 if quick else ROUNDS),
            _chosen("group", GROUPS, lambda group: group.key, groups),
            [side for side in wanted if not side.missing],
            settings,
            quick,
        )
        results = _results(plan)
        results.notes += [
            f"left out: {side.title} ({', '.join(side.missing)} not found)" for side in wanted if side.missing
        ]
        for note in results.notes:
            console.print(note, style="yellow")
        _measure(console, plan, results, docs)
        if not results.rounds:
            raise BenchmarkError("interrupted before the first round was finished: there is nothing to report")
    report.show(console, results)
    if docs is not None:
        report.write(results, docs)


def _measure(console: Console, plan: Plan, results: report.Results, docs: Path | None) -> None:
    """Measure round after round; an interrupt keeps the finished rounds."""
    steps = plan.steps()
    console.print(
        f"{plan.rounds} × {len(steps)} measurements, about {math.ceil(plan.estimate_s() / 60)} minutes; "
        "Ctrl-C ends it and reports the rounds so far"
    )
    descriptors = raise_descriptor_limit()
    idle = idle_streams(plan.settings, descriptors)
    if idle < plan.settings.idle_count and any(group.key == "idle" for group in plan.groups):
        results.notes.append(f"{idle} idle streams: there are only {descriptors} descriptors for a process")
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="goreprox-benchmark-") as name,
        Processes(Path(name)) as processes,
    ):
        folder = Path(name)
        targets = Targets(processes, folder, descriptors)
        for number in range(1, plan.rounds + 1):
            found = []
            for group, side in steps:
                console.print(f"round {number} of {plan.rounds}: {group.key}, {side.title}", style="dim")
                processes.check()
                figures, notes = measure(
                    group, side, targets=targets, settings=plan.settings, folder=folder, descriptors=descriptors
                )
                for note in notes:
                    console.print(f"  {note}", style="yellow", markup=False)
                found.append((group, side, figures, notes))
            for group, side, figures, notes in found:
                results.add(side.key, group.rows, figures)
                results.notes += [f"{side.title}: {note}" for note in notes]
            results.rounds = number
            if docs is not None:
                results.save(docs / "benchmarks" / "results.json")


def _results(plan: Plan) -> report.Results:
    parties = [Party(side.key, side.title, side.kind is Kind.TUNNEL, side.encrypted) for side in SIDES]
    libraries = f"libzmq {zmq.zmq_version()}, pyzmq {zmq.__version__}"
    versions = {"goreprox": f"{__version__}{_commit()} ({build()}), {libraries}"}
    commands = {side.version[0]: side.version for side in plan.sides if side.version} | {"wrk": ("wrk", "-v")}
    versions |= {name: report.version((find(name) or name, *rest)) for name, (_, *rest) in commands.items()}
    began = datetime.now(UTC).isoformat(timespec="seconds")
    return report.Results(
        report.command_line(), began, plan.quick, report.machine(), versions, asdict(plan.settings), parties
    )


def _commit() -> str:
    git = find("git")
    if git is None:
        return ""
    done = subprocess.run([git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return f" at {done.stdout.strip()}" if done.returncode == 0 else ""


def _chosen(what: str, there: Iterable[T], key: Callable[[T], str], wanted: list[str] | None) -> list[T]:
    found = {key(one): one for one in there}
    for name in wanted or ():
        if name not in found:
            raise BenchmarkError(f"{what} {name}: there are {', '.join(found)}")
    return [one for name, one in found.items() if wanted is None or name in wanted]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what we started ends, too
    try:
        cyclopts.run(main)
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
