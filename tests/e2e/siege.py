"""A server under siege: honest streams, and beside them strangers and holders of keys that do their worst.

`python -m tests.e2e.siege SEED [--seconds S]` replays a seed: who does what, in which order; what coincides is the
machine's own. A byte lost, an end invented, a death of the server or descriptors that it keeps are violations.
"""

import argparse
import asyncio
import contextlib
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path

import zmq

from brokers import Buffer, Role
from brokers.envelope import Announce, Hello, Leave, Renew, control
from brokers.peers import INCARNATION_BYTES, NONCE_BYTES, PeerName
from brokers.sockets import secure_link
from goreprox.errors import GoreproxError
from goreprox.keys.join import Join
from goreprox.keys.state import StateDir
from tests.e2e.chaos import HEADER, End, Report, unfaithful
from tests.e2e.hostile import OPENINGS, Cutter, perform, ready, scripts
from tests.e2e.secured import Secured
from tests.support.processes import Process
from tests.support.sockets import HOST
from tests.support.waiting import eventually

CLIENTS = 6
BESIEGERS = 4
"""Of each at a time; each is followed by the next."""
MESSAGES = 4000
"""A flood: four times what a pipe of libzmq holds by default."""
PARTS = 20_000
HALF_OPEN = 100
REST_S = 60.0
"""Streams, and what libzmq keeps of connections, are over so long after the last attack."""
KEPT_DESCRIPTORS = 2 * 64 + 8
"""libzmq may keep 64 connections, with two descriptors each, before a broker does something; a few are of clients."""


class KeyHolder:
    """A provider's key in the wrong hands: a DEALER that says what it likes."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", join: Join, dice: random.Random) -> None:
        self._context, self._join, self._dice = context, join, dice
        self._incarnation = dice.randbytes(INCARNATION_BYTES)
        self.sockets: list[zmq.Socket[bytes]] = []

    def identity(self, name: str) -> bytes:
        return PeerName(Role.PROVIDER, name, self._incarnation).routing_id(bytes(NONCE_BYTES))

    def connect(self, port: int, identity: bytes) -> "zmq.Socket[bytes]":
        sock = self._context.socket(zmq.DEALER)
        self.sockets.append(sock)
        options = {zmq.LINGER: 0, zmq.HEARTBEAT_IVL: 20, zmq.RECONNECT_IVL: 50, zmq.SNDHWM: 0, zmq.RCVHWM: 0}
        for option, value in options.items():
            sock.setsockopt(option, value)
        if identity:
            sock.setsockopt(zmq.ROUTING_ID, identity)
        secure_link(sock, self._join.security.keys, self._join.server_keys[0])
        sock.connect(f"tcp://{HOST}:{port}")
        return sock

    def greet(self, sock: "zmq.Socket[bytes]", services: list[str]) -> None:
        sock.send_multipart(control(Hello(1, 1, 1, {"protocol": [1, 1], "services": services})))

    async def flood(self, socks: "list[zmq.Socket[bytes]]", make: Callable[[], list[Buffer]], count: int) -> None:
        """Send so many messages over these, in turns, and let everybody else have theirs."""
        for index in range(count):
            with contextlib.suppress(zmq.Again):
                socks[index % len(socks)].send_multipart(make(), zmq.NOBLOCK)
            if index % 100 == 0:
                await asyncio.sleep(self._dice.choice((0, 0.01)))

    def close(self) -> None:
        for sock in self.sockets:
            sock.close(0)


class Siege:
    """One server, one honest provider, and the attacks of one seed."""

    def __init__(self, made: Secured, seed: int, seconds: float) -> None:
        self.made, self.seed = made, seed
        self.report = Report()
        self._seconds = seconds
        self._dice = random.Random(f"{seed} siege")
        self._state = StateDir(made.state)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
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
        holder = KeyHolder(self._context, Join.parse(path.read_text()), dice)
        cut = (dice.randrange(2), dice.choice((dice.randrange(1000), dice.randrange(1 << 20))), dice.random() < 0.5)
        cutter = Cutter(self.made.providers, lambda: cut if dice.random() < 0.5 else None)
        kind, fate = dice.choice(list(_DEEDS)), dice.choice((self._revoke, self._narrow, self._nothing))
        self.report.faults[f"{kind}, {fate.__name__.strip('_')}"] += 1
        deed = asyncio.create_task(_DEEDS[kind](holder, cutter.port, name), name=kind)
        try:
            await asyncio.sleep(dice.uniform(0, 1))
            await fate(name)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await deed
        finally:
            deed.cancel()
            await asyncio.gather(deed, return_exceptions=True)
            holder.close()
            await cutter.stop()
            with contextlib.suppress(GoreproxError):
                await self._revoke(name)

    async def _revoke(self, name: str) -> None:
        await asyncio.to_thread(self._state.revoke, name)

    async def _narrow(self, name: str) -> None:
        await asyncio.to_thread(self._state.allow, name, ["others"])

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
            await asyncio.to_thread(self._context.destroy, 0)
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


async def _announce(holder: KeyHolder, port: int, name: str) -> None:
    sock = holder.connect(port, holder.identity(name))
    holder.greet(sock, ["theirs"])
    turns = iter(range(1 << 30))
    await holder.flood([sock], lambda: control(Announce({"services": ["theirs"], "turn": next(turns)})), MESSAGES)


async def _more_than_allowed(holder: KeyHolder, port: int, name: str) -> None:
    sock = holder.connect(port, holder.identity(name))
    holder.greet(sock, ["theirs"])
    await holder.flood([sock], lambda: control(Announce({"services": ["default"]})), MESSAGES // 10)


async def _as_another(holder: KeyHolder, port: int, name: str) -> None:
    sock = holder.connect(port, holder.identity(f"not-{name}"))
    holder.greet(sock, ["theirs"])
    await holder.flood([sock], lambda: control(Renew()), MESSAGES)


async def _without_a_name(holder: KeyHolder, port: int, name: str) -> None:
    socks = [holder.connect(port, identity) for identity in (b"\0\0\0\0\1", b"\0" + os.urandom(4), b"", b"")]
    await holder.flood(socks, lambda: control(Leave()), MESSAGES // 10)


async def _to_nobody(holder: KeyHolder, port: int, name: str) -> None:
    sock = holder.connect(port, holder.identity(name))
    holder.greet(sock, ["theirs"])
    await holder.flood([sock], lambda: [b"e" + os.urandom(16), bytes(1000)], MESSAGES)


async def _twins(holder: KeyHolder, port: int, name: str) -> None:
    socks = [holder.connect(port, holder.identity(name)) for _ in range(2)]
    holder.greet(socks[0], ["theirs"])
    await holder.flood(socks, lambda: control(Renew()), MESSAGES // 10)


async def _many_parts(holder: KeyHolder, port: int, name: str) -> None:
    sock = holder.connect(port, holder.identity(name))
    holder.greet(sock, ["theirs"])
    await holder.flood([sock], lambda: [b""] * PARTS, 3)


async def _garbage(holder: KeyHolder, port: int, name: str) -> None:
    sock = holder.connect(port, holder.identity(name))
    await holder.flood([sock], lambda: [b"", os.urandom(300)], MESSAGES)


_DEEDS: dict[str, Callable[[KeyHolder, int, str], Coroutine[object, object, None]]] = {
    "announce": _announce,
    "more than allowed": _more_than_allowed,
    "as another": _as_another,
    "without a name": _without_a_name,
    "to nobody": _to_nobody,
    "twins": _twins,
    "many parts": _many_parts,
    "garbage": _garbage,
}


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
