"""A server under siege: honest streams, and beside them strangers and holders of keys that do their worst.

`python -m tests.e2e.siege SEED [--seconds S]` replays a seed: who does what, in which order; what coincides is the
machine's own. A byte lost, an end invented, a death of the server or descriptors that it keeps are violations.
"""

import argparse
import asyncio
import contextlib
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from brokers import Role
from goreprox.errors import GoreproxError
from goreprox.keys.state import StateDir
from tests.e2e.chaos import HEADER, End, Report, unfaithful
from tests.e2e.hostile import OPENINGS, Cutter, perform, ready, scripts
from tests.e2e.key_holder import DEEDS, act
from tests.e2e.secured import Secured
from tests.support.forks import FORKS
from tests.support.processes import Process
from tests.support.sockets import HOST
from tests.support.waiting import eventually

CLIENTS = 6
BESIEGERS = 4
"""Of each at a time; each is followed by the next."""
DEED_S = 3.0
"""How long somebody with a key goes on after its fate."""
HALF_OPEN = 100
REST_S = 60.0
"""Streams, and what libzmq keeps of connections, are over so long after the last attack."""
KEPT_DESCRIPTORS = 2 * 64 + 8
"""libzmq may keep 64 connections, with two descriptors each, before a broker does something; a few are of clients."""


class Siege:
    """One server, one honest provider, and the attacks of one seed."""

    def __init__(self, made: Secured, seed: int, seconds: float) -> None:
        self.made, self.seed = made, seed
        self.report = Report()
        self._seconds = seconds
        self._dice = random.Random(f"{seed} siege")
        self._state = StateDir(made.state)
        self._clients: list[End] = []
        self._targets: dict[int, End] = {}
        self._holders = 0

    # Honest streams.

    async def target(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        header = await reader.readexactly(HEADER)
        number, total = int.from_bytes(header[:8], "big"), int.from_bytes(header[8:], "big")
        end = self._targets[number] = End(f"{self.seed} {number} target", "", total, None)
        await end.run(reader, writer, 0.0)

    async def _client(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            number = len(self._clients)
            totals = [self._dice.choice([0, 1, 1000, 100_000, 2_000_000]) for _ in range(2)]
            end = End(f"{self.seed} {number} client", "", totals[0], None)
            self._clients.append(end)
            reader, writer = await self.made.connect()
            writer.write(number.to_bytes(8, "big") + totals[1].to_bytes(8, "big"))
            await end.run(reader, writer, self._dice.choice([0.0, 0.01, 0.05]))

    # Attacks.

    async def _besiege(self, deadline: float) -> None:
        attacks = (self._stranger, self._half_open, self._key_holder, self._key_holder, self._key_holder)
        while time.monotonic() < deadline:
            await self._dice.choice(attacks)(random.Random(self._dice.random()))

    async def _stranger(self, dice: random.Random) -> None:
        """Somebody without a key."""
        kind, pieces = dice.choice([*scripts().items(), *((kind, [text]) for kind, text in OPENINGS.items())])
        handshake = dice.choice((None, ready(b"DEALER", dice.choice((b"", b"x")))))
        self.report.faults[kind] += 1
        with socket.socket() as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (HOST, self.made.providers))
            await perform(sock, pieces, handshake=handshake, pause_s=dice.uniform(0, 0.1), rst=dice.random() < 0.5)

    async def _half_open(self, dice: random.Random) -> None:
        """Connections that say nothing."""
        self.report.faults["half-open"] += 1
        with contextlib.ExitStack() as stack:
            for _ in range(HALF_OPEN):
                stack.enter_context(socket.create_connection((HOST, self.made.providers)))
            await asyncio.sleep(dice.uniform(0, 1))

    async def _key_holder(self, dice: random.Random) -> None:
        """Somebody with a key that is good for one name and service; perhaps it is revoked or narrowed meanwhile."""
        self._holders += 1
        name = f"holder-{self._holders}"
        path = await asyncio.to_thread(self._state.add, Role.PROVIDER, name, ["theirs"])
        cut = (dice.randrange(2), dice.choice((dice.randrange(1000), dice.randrange(1 << 20))), dice.random() < 0.5)
        cutter = Cutter(self.made.providers, lambda: cut if dice.random() < 0.5 else None)
        kind, fate = dice.choice(list(DEEDS)), dice.choice((self._revoke, self._narrow, self._nothing))
        self.report.faults[f"{kind}, {fate.__name__.strip('_')}"] += 1
        holder = FORKS.Process(target=act, args=(kind, path.read_text(), cutter.port, dice.random()), name=name)
        holder.start()
        try:
            await asyncio.sleep(dice.uniform(0, 1))
            await fate(name)
            await asyncio.to_thread(holder.join, DEED_S)
        finally:
            holder.kill()
            await asyncio.to_thread(holder.join)
            holder.close()
            await cutter.stop()
            with contextlib.suppress(GoreproxError):
                await self._revoke(name)

    async def _revoke(self, name: str) -> None:
        await asyncio.to_thread(self._state.revoke, name)

    async def _narrow(self, name: str) -> None:
        await asyncio.to_thread(self._state.allow, name, services=["others"])

    async def _nothing(self, name: str) -> None:
        pass

    # All of it.

    async def run(self) -> None:
        """Let it all happen, and judge."""
        server = self.made.server
        before = _descriptors(server)
        deadline = time.monotonic() + self._seconds
        clients = [asyncio.create_task(self._client(deadline), name="client") for _ in range(CLIENTS)]
        besiegers = [asyncio.create_task(self._besiege(deadline), name="besieger") for _ in range(BESIEGERS)]
        death = asyncio.create_task(server.process.wait(), name="death of the server")
        try:
            work = asyncio.gather(*clients, *besiegers)
            await asyncio.wait((work, death), timeout=self._seconds + REST_S, return_when=asyncio.FIRST_COMPLETED)
            if death.done():
                self.report.violations.append(f"the server ended with code {death.result()}: {server.log[-3:]}")
            elif work.done():
                work.result()
                await self._quiet(server, before)
            for task in (*clients, *besiegers):
                task.cancel()
            await asyncio.gather(*clients, *besiegers, return_exceptions=True)
        finally:
            death.cancel()
        self._judge()

    async def _quiet(self, server: Process, before: int) -> None:
        with contextlib.suppress(AssertionError):  # judged below, each by itself
            await eventually(lambda: all(end.ended for end in self._targets.values()), "", deadline_s=REST_S)
        try:
            await eventually(lambda: _descriptors(server) <= before + KEPT_DESCRIPTORS, "", deadline_s=REST_S)
        except AssertionError:
            self.report.violations.append(f"the server had {before} descriptors, and has {_descriptors(server)}")

    def _judge(self) -> None:
        for number, client in enumerate(self._clients):
            self.report.streams += 1
            target = self._targets.get(number)
            if target is None or not all(end.ended is not None and end.saw_eof for end in (client, target)):
                violation: str | None = "it did not end, or with a reset"
            else:
                violation = unfaithful(self.report, client, target) or unfaithful(self.report, target, client)
            if violation is not None:
                self.report.violations.append(f"stream {number}: {violation}; client {client}; target {target}")
        for entry in self.made.server.log:
            if "Traceback" in str(entry.get("message", "")):
                self.report.violations.append(f"server: {entry}")


def _descriptors(process: Process) -> int:
    return sum(1 for _ in Path(f"/proc/{process.process.pid}/fd").iterdir())


async def besiege(tmp: Path, seed: int, *, seconds: float) -> Report:
    """Do all that a seed says for so long; return what came of it."""
    made = Secured(tmp)
    async with made._stack:
        await made.serve()
        siege = Siege(made, seed, seconds)
        await made.provide(target=await made.target(siege.target))
        await siege.run()
        return siege.report


def main() -> int:
    """Run a seed; print what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.siege", description=__doc__)
    parser.add_argument("seed", metavar="SEED", type=int)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        report = asyncio.run(besiege(Path(tmp), options.seed, seconds=options.seconds))
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(report.faults).items()))
    sys.stdout.write(f"siege seed {options.seed}: {report}\n    {kinds}\n")
    for violation in report.violations:
        sys.stdout.write(f"FAILED: {violation[:1000]}\n")
    if report.violations:
        sys.stdout.write(f"replay: python -m tests.e2e.siege {options.seed} --seconds {options.seconds:g}\n")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
