"""Chaos on real processes: two edges, two brokers, two providers, a relay between each two, and every fault to each.

`python -m tests.e2e.chaos SEED ...` replays seeds; with `--nats` the brokers are a cluster of two NATS servers. A seed
says in which order the faults come, how long each lasts, and so what coincides; what the machine makes of it is its
own. Every fault comes once to every process and link.
"""

import argparse
import asyncio
import contextlib
import hashlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.upgrading import start
from tests.support.events import matching
from tests.support.nats import NatsCluster, NatsServer
from tests.support.processes import WAIT_S, Process, Tunnel, nothing_yet
from tests.support.relay import Relay
from tests.support.servers import Handler
from tests.support.sockets import HOST, reset_now
from tests.support.waiting import eventually

EDGES, BROKERS, PROVIDERS = ("e0", "e1"), ("b0", "b1"), ("p0", "p1")
PEERS = (*EDGES, *PROVIDERS)
RELOADS = {"e": "queue-timeout = {}\ndrain = {}", "p": "weight = {}\ndrain = {}", "b": "max-peers = {}"}
"""What a reload changes, by the first letter of a process."""
GRACE_S = 45.0
"""Longer than any coincidence of faults, of which each lasts at most 8 s."""
REST_S = GRACE_S + 45.0
"""All streams are over so long after the last fault, and all proofs of death told."""
CLIENTS = 12
"""At a time; each is followed by the next."""
CHUNK = 16 * 1024
SLOW_BYTES_PER_S = 125_000
DELAY_S = 0.2
LASTS_S = (0.3, 1.0, 3.0, 8.0)
NEWS_S = 10.0
"""A client that comes so soon after the death of a provider may still be sent to the dead one."""
HEADER = 16
DONE = {
    "reload": (signal.SIGHUP, ("reloaded", "reloaded")),
    "upgrade": (signal.SIGUSR2, ("starting", "ready")),
}
"""What is not a fault at all, but may come among them: how it is asked for, and what a peer and a broker log then."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: of a process (`e0`) or of a link (`e0 b1`)."""

    kind: str
    where: str
    lasts_s: float


def plan(seed: int) -> list[Fault]:
    """Return all faults, in the order of this seed."""
    dice = random.Random(seed)
    links = [f"{peer} {broker}" for peer in PEERS for broker in BROKERS]
    faults = [(kind, slot) for kind in ("kill", "stop", "reload", "upgrade") for slot in (*PEERS, *BROKERS)]
    faults += [(kind, link) for kind in ("cut", "silence", "slow", "delay") for link in links]
    dice.shuffle(faults)
    return [Fault(kind, where, dice.choice(LASTS_S)) for kind, where in faults]


@dataclass(slots=True)
class End:
    """A client's or a target's view of a stream."""

    seed: str
    slot: str
    """The edge or the provider that owns the other socket."""
    total: int
    """Bytes to write before the end of file."""
    reset_after: int | None
    """Bytes after which to reset instead."""
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    written: int = 0
    eof_written: bool = False
    did_reset: bool = False
    read: int = 0
    digest: str = hashlib.sha256().hexdigest()
    saw_eof: bool = False
    saw_reset: bool = False

    @property
    def text(self) -> bytes:
        """All that this end writes."""
        return random.Random(self.seed).randbytes(self.total)

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause_s: float) -> None:
        """Write and read to both ends of file, or to a reset."""
        reading = asyncio.create_task(self._read(reader), name="read")
        try:
            await self._write(writer, pause_s)
        except OSError:
            self.saw_reset = True
        if self.did_reset:
            reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        writer.close()
        self.ended = time.monotonic()

    async def _write(self, writer: asyncio.StreamWriter, pause_s: float) -> None:
        text = self.text
        while self.written < self.total:
            if self.reset_after is not None and self.written >= self.reset_after:
                self.did_reset = True
                reset_now(writer)
                return
            chunk = text[self.written : self.written + CHUNK]
            self.written += len(chunk)
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(pause_s)
        self.eof_written = True
        writer.write_eof()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        digest = hashlib.sha256()
        try:
            while data := await reader.read(1 << 16):
                digest.update(data)
                self.read += len(data)
            self.saw_eof = True
        except OSError:
            self.saw_reset = True
        finally:
            self.digest = digest.hexdigest()


@dataclass(slots=True)
class Report:
    """What a seed did."""

    faults: Counter[str] = field(default_factory=Counter)
    streams: int = 0
    excused: int = 0
    """Streams that lost one of the processes that owned their sockets, or that one of their own ends reset."""
    bytes_checked: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.faults.total()} faults, {self.streams} streams ({self.excused} of them lost a process or were "
            f"reset by an end), {self.bytes_checked} bytes checked, {len(self.violations)} violations"
        )


class Chaos:
    """One cluster under the faults of one seed."""

    def __init__(self, made: Tunnel, seed: int, pace_s: float, *, nats: bool) -> None:
        """Prepare; a fault comes every `pace_s` seconds. Brokers are NATS servers if `nats` is true."""
        self.nats = nats
        self.servers: dict[str, NatsServer] = {}
        """Those, by their slots."""
        self.made = made
        self.seed = seed
        self.pace_s = pace_s
        self.dice = random.Random(f"{seed} streams")
        self.processes: dict[str, Process] = {}
        self.commands: dict[str, tuple[str, ...]] = {}
        self.ports: dict[str, int] = {}
        self.relays: dict[str, Relay] = {}
        self.dead: list[tuple[str, float, float]] = []
        """Who was killed, when, and when its successor was ready."""
        self.configured = 0
        """How often a file was written."""
        self.locks = {slot: asyncio.Lock() for slot in (*PEERS, *BROKERS)}
        self.clients: list[End] = []
        self.targets: dict[int, End] = {}
        self.report = Report()

    async def start(self) -> None:
        """Start everything, and wait until everybody knows everybody."""
        await (self._start_servers() if self.nats else self._start_brokers())
        scheme = "nats://" if self.nats else ""
        for slot in PEERS:
            ways = [f"{scheme}{HOST}:{self.relays[f'{slot} {broker}'].port}" for broker in BROKERS]
            rest = ("--name", slot, "--grace", str(GRACE_S))
            if slot in EDGES:
                brokers = [text for way in ways for text in ("--broker", way)]
                self.commands[slot] = ("edge", "--listen", f"{HOST}:0", *brokers, *rest)
                self.ports[slot] = await (await self._spawn(slot)).port("clients")
                self.commands[slot] = ("edge", "--listen", f"{HOST}:{self.ports[slot]}", *brokers, *rest)
            else:
                servers = [text for way in ways for text in ("--server", way)]
                port = await self.made.target(self._target(slot))
                self.commands[slot] = ("provider", f"{HOST}:{port}", *servers, *rest)
                await self._spawn(slot)
        for edge in EDGES:
            process = self.processes[edge]
            for provider in PROVIDERS:
                await eventually(lambda p=process, n=provider: p.events("peer_up", peer=n), f"{edge} knows {provider}")  # type: ignore[misc]

    async def _start_servers(self) -> None:
        cluster = await self.made._stack.enter_async_context(NatsCluster.run(self.made.tmp, len(BROKERS)))
        self.servers = dict(zip(BROKERS, cluster.servers, strict=True))
        for slot, server in self.servers.items():
            for peer in PEERS:
                await self._relay(peer, slot, server.port)

    async def _relay(self, peer: str, slot: str, port: int) -> None:
        relay = self.relays[f"{peer} {slot}"] = Relay(port)
        await relay.start()
        self.made._stack.push_async_callback(relay.stop)

    async def _start_brokers(self) -> None:
        for slot in BROKERS:
            self.commands[slot] = ("broker", "--providers", f"{HOST}:0", "--edges", f"{HOST}:0", "--name", slot)
            process = await self._spawn(slot)
            ports = {kind: await process.port(kind) for kind in ("providers", "edges")}
            self.commands[slot] = (
                *("broker", "--providers", f"{HOST}:{ports['providers']}", "--edges", f"{HOST}:{ports['edges']}"),
                *("--name", slot),
            )
            for peer in PEERS:
                await self._relay(peer, slot, ports["edges" if peer in EDGES else "providers"])

    async def _spawn(self, slot: str) -> Process:
        self._configure(slot)
        process = self.processes[slot] = await start(self.made, *self.commands[slot], "--config", f"{slot}.toml")
        return process

    def _configure(self, slot: str) -> None:
        """Write another file for a process."""
        self.configured += 1
        number = 20 + self.configured
        (self.made.tmp / f"{slot}.toml").write_text(RELOADS[slot[0]].format(number, number), encoding="utf-8")

    # Streams.

    def _target(self, slot: str) -> Handler:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            header = await reader.readexactly(HEADER)
            number, total, reset_after, pause_ms = (
                int.from_bytes(header[i : i + 4], "big") for i in range(0, HEADER, 4)
            )
            end = End(f"{self.seed} {number} target", slot, total, reset_after if reset_after < total else None)
            if number in self.targets:
                self.report.violations.append(f"stream {number} reached {self.targets[number].slot} and {slot}")
            self.targets[number] = end
            await end.run(reader, writer, pause_ms / 1000)

        return handler

    async def _client(self, deadline: float) -> None:
        """Be one client after the other."""
        while time.monotonic() < deadline:
            edge = self.dice.choice(EDGES)
            totals = [self.dice.choice([0, 1, 1000, 100_000, 400_000, 1_000_000]) for _ in range(2)]
            resets = [self.dice.randrange(total + 1) if self.dice.random() < 0.04 else 1 << 31 for total in totals]
            pauses_ms = [self.dice.choice([0, 10, 50, 150]) for _ in range(2)]
            number = len(self.clients)
            end = End(f"{self.seed} {number} client", edge, totals[0], resets[0] if resets[0] < totals[0] else None)
            self.clients.append(end)
            try:
                reader, writer = await self.made.connect(self.ports[edge])
            except OSError:  # nobody listens: it was killed
                self.clients[number].ended = time.monotonic()
                end.saw_reset = True
                await asyncio.sleep(0.2)
                continue
            header = b"".join(value.to_bytes(4, "big") for value in (number, totals[1], resets[1], pauses_ms[1]))
            writer.write(header)
            await end.run(reader, writer, pauses_ms[0] / 1000)

    # Faults.

    async def run(self) -> None:
        """Let it all happen; heal it; judge every stream."""
        faults = plan(self.seed)
        end = time.monotonic() + self.pace_s * len(faults)
        clients = [asyncio.create_task(self._client(end), name="client") for _ in range(CLIENTS)]
        running = []
        for fault in faults:
            running.append(asyncio.create_task(self._fault(fault), name=fault.kind))
            await asyncio.sleep(self.pace_s)
        await asyncio.gather(*running)
        give_up = time.monotonic() + REST_S
        await asyncio.wait(clients, timeout=REST_S)
        while any(t.ended is None for t in self.targets.values()) and time.monotonic() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        for client in clients:
            if client.done():
                client.result()
            client.cancel()
        self._judge()
        await self._leave()

    async def _fault(self, fault: Fault) -> None:
        self.report.faults[fault.kind] += 1
        if fault.where in self.locks:
            async with self.locks[fault.where]:  # a stopped process is not killed before it goes on
                await self._process_fault(fault)
            return
        relay = self.relays[fault.where]
        match fault.kind:
            case "cut":
                relay.refusing = True
                relay.cut(fin=self.dice.random() < 0.5)
            case "silence":
                relay.silence()
            case "slow":
                relay.bytes_per_s = SLOW_BYTES_PER_S
            case "delay":
                relay.delay_s = DELAY_S
        await asyncio.sleep(fault.lasts_s)
        match fault.kind:
            case "cut":
                relay.refusing = False
            case "silence":
                relay.unsilence()
            case "slow":
                relay.bytes_per_s = None
            case "delay":
                relay.delay_s = 0.0

    async def _server_fault(self, fault: Fault, server: NatsServer) -> None:
        """Do to a NATS server what is done to a broker; it is upgraded by another one in its place."""
        match fault.kind:
            case "stop":
                server.signal(signal.SIGSTOP)
                await asyncio.sleep(fault.lasts_s)
                server.signal(signal.SIGCONT)
            case "reload":
                await server.reload()
            case "upgrade":
                await server.retire()
                await server.start()
            case _:
                await server.kill()
                await asyncio.sleep(min(fault.lasts_s, 1.0))
                await server.start()

    async def _process_fault(self, fault: Fault) -> None:
        if fault.where in self.servers:
            await self._server_fault(fault, self.servers[fault.where])
            return
        process = self.processes[fault.where]
        if fault.kind == "stop":
            process.signal(signal.SIGSTOP)
            await asyncio.sleep(fault.lasts_s)
            process.signal(signal.SIGCONT)
            return
        if fault.kind in DONE:
            self._configure(fault.where)
            number, events = DONE[fault.kind]
            event = events[fault.where in BROKERS]
            before = process.events(event)
            process.signal(number)
            await eventually(
                lambda: process.events(event) > before, f"{fault.kind} of {fault.where}", deadline_s=WAIT_S
            )
            return
        at = time.monotonic()
        await process.stop()
        self._check_log(fault.where, process)
        await asyncio.sleep(min(fault.lasts_s, 1.0))
        await self._spawn(fault.where)
        self.dead.append((fault.where, at, time.monotonic()))

    # Judgement.

    def _judge(self) -> None:
        for number, client in enumerate(self.clients):
            target = self.targets.get(number)
            self.report.streams += 1
            violation = self._violation(client, target)
            if violation:
                self.report.violations.append(f"stream {number}: {violation}; client {client}; target {target}")

    def _violation(self, client: End, target: End | None) -> str | None:
        ends = [client] if target is None else [client, target]
        if any(end.ended is None for end in ends):
            return "it does not end"
        if client.did_reset or (target and target.did_reset) or self._lost_a_process(client, target):
            self.report.excused += 1
        elif target is None:
            return "no target was reached"
        elif not all(end.saw_eof and not end.saw_reset for end in ends):
            return "an end was invented"
        if target is None:
            return "bytes from nowhere" if client.read or client.saw_eof else None
        return unfaithful(self.report, client, target) or unfaithful(self.report, target, client)

    def _lost_a_process(self, client: End, target: End | None) -> bool:
        """Whether one that owned a socket of this stream, or may have, was killed meanwhile."""
        assert client.ended is not None
        ended = max(client.ended, (target and target.ended) or 0.0)
        for slot, died, back in self.dead:
            if slot in (client.slot, target and target.slot):
                until = back
            elif target is None and slot in PROVIDERS:
                until = back + NEWS_S
            else:
                continue
            if client.began <= until and died <= ended:
                return True
        return False

    def _check_log(self, slot: str, process: Process) -> None:
        wrong = [entry for entry in process.log if "Traceback" in str(entry.get("message", ""))]
        for event in ("peer_failed", "reload_failed", "upgrade_failed", "restore_failed"):
            wrong += matching(process.log, event)
        self.report.violations.extend(f"{slot}: {entry}" for entry in wrong)

    async def _leave(self) -> None:
        """With nothing left to do, all processes end at once and well."""
        for slot, process in self.processes.items():
            if process.process.returncode is None:
                process.signal(signal.SIGTERM)
            code = await process.wait()
            if code != 0:
                self.report.violations.append(f"{slot} ended with code {code}: {process.log[-3:]}")
            self._check_log(slot, process)


def unfaithful(report: Report, reader: End, writer: End) -> str | None:
    """Say how what one end read differs from what the other one did."""
    report.bytes_checked += reader.read
    if reader.read > writer.written or hashlib.sha256(writer.text[: reader.read]).hexdigest() != reader.digest:
        return "bytes that were never written"
    if reader.saw_eof and not (writer.eof_written and reader.read == writer.total):
        return "an end of file that was never written"
    if writer.did_reset and not reader.did_reset and not reader.saw_reset:
        return "a reset was lost"
    return None


@contextlib.asynccontextmanager
async def cluster(tmp: Path, seed: int, pace_s: float, *, nats: bool) -> AsyncIterator[Chaos]:
    """Start a cluster that ends with the context."""
    async with nothing_yet(tmp) as made:
        chaos = Chaos(made, seed, pace_s, nats=nats)
        await chaos.start()
        yield chaos


async def rampage(tmp: Path, seed: int, *, pace_s: float, nats: bool = False) -> Report:
    """Do all that a seed says; return what came of it."""
    async with cluster(tmp, seed, pace_s, nats=nats) as chaos:
        await chaos.run()
        return chaos.report


def main() -> int:
    """Run seeds; print what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.chaos", description=__doc__)
    parser.add_argument("seeds", metavar="SEED", type=int, nargs="+")
    parser.add_argument("--pace", type=float, default=0.6, help="seconds from one fault to the next")
    parser.add_argument("--nats", action="store_true", help="brokers are a cluster of NATS servers")
    options = parser.parse_args()
    wrong = 0
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as tmp:
            began = time.monotonic()
            report = asyncio.run(rampage(Path(tmp), seed, pace_s=options.pace, nats=options.nats))
        sys.stdout.write(f"chaos seed {seed}: {report} in {time.monotonic() - began:.0f} s\n")
        for violation in report.violations:
            sys.stdout.write(f"FAILED: {violation}\n")
        if report.violations:
            wrong += 1
            how = f"{' --nats' if options.nats else ''} --pace {options.pace}"
            sys.stdout.write(f"replay: python -m tests.e2e.chaos {seed}{how}\n")
        sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
