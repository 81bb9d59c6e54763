"""docs/protocol.md against the code: every number, both state tables, and the example."""

import re
from pathlib import Path

import cbor2
import pytest

from brokers import (
    carrier,
    connections,
    diagnosis,
    envelope,
    interest,
    link,
    outboxes,
    peers,
    port,
    router,
    sockets,
    switch,
)
from goreprox.config import defaults, published
from goreprox.keys import join
from goreprox.net import certificates, handshakes, link_tls
from goreprox.protocol import budget, congestion, epochs, limits, paths, receiver, wire
from goreprox.protocol.budget import Budget
from goreprox.protocol.events import Code
from goreprox.protocol.notices import Kind
from goreprox.protocol.session import Session
from goreprox.protocol.state import TRANSITIONS, State, Step
from goreprox.protocol.stream import Stream
from goreprox.tunnel import attributes, driver

KIB, MIB = limits.KIB, limits.MIB
FILE = Path(__file__).parents[2] / "docs/protocol.md"
TIMES = carrier.Timings()
MEMORY = defaults.DEFAULT_MEMORY_MIB * MIB
RESERVED = Budget(total_bytes=MEMORY, max_streams=defaults.DEFAULT_MAX_CONNECTIONS).reserved_bytes
STALL_PROBES_S = limits.PROBE_MIN_S * (2 ** (limits.STALL_PROBES + 1) - 1)
STALL_ROUND_TRIPS = 4 * (2 ** (limits.STALL_PROBES + 1) - 1)
ROUTING_BYTES = peers.ID_BYTES + peers.NONCE_BYTES
PROMISED_S = 15
"""After the grace, streams are gone at both ends."""


def size(count: int) -> str:
    return f"{count // MIB} MiB" if count % MIB == 0 else f"{count // KIB} KiB"


def plain(text: str) -> str:
    return " ".join(text.split())


NAMES = [
    "RFC 8949",
    "RFC 7301",
    "TLS 1.2",
    "RFC 8610",
    "RFC 26",
    "RFC 27",
    "RFC 9293, 3.4",
    "ZMTP 3.1",
    "(Z85)",
    "base64url",
    "BLAKE2b",
    "a-z 0-9",
    "uint63",
    "stream 1.",
    "as stream 1.",
    "starts at offset 0",
    "`e` edge",
]
"""Digits that count nothing."""

GRANTED_BYTES = len(cbor2.dumps({published.GRANTED: [bytes(40), [[60000, 60001]] * published.MAX_GRANTS]})) - 1

FABRIC = [
    f"the protocol `{certificates.LINK_ALPN}` by ALPN",
    f"default port {defaults.PROVIDER_PORT};",
    "| role | 1 |",
    f"| incarnation | {peers.INCARNATION_BYTES} |",
    f"| peer id | {peers.ID_BYTES} |",
    f"| routing id | {ROUTING_BYTES + 1} to {ROUTING_BYTES + limits.MAX_NAME} |",
    f"{peers.NONCE_BYTES} secret random bytes, name (1 to {limits.MAX_NAME} of",
    f"is shut down {router.REJECTED_S:g} s later",
    f"| 1, 1 | version ({join.VERSION}), role",
    f"| {join.KEY_BYTES} | the peer's secret key",
    f"| 1, {join.KEY_BYTES} each | number of the broker's public keys",
    f"| 1 to {limits.MAX_NAME} | name |",
    f"| {join.CHECKSUM_BYTES} | BLAKE2b of all before",
    f"A frame holds at most {size(envelope.MAX_FRAME)}",
    f"a message at most {envelope.MAX_FRAMES} frames",
    f"control frame at most {size(envelope.MAX_CONTROL)}",
    f"name = tstr .size (1..{limits.MAX_NAME})",
    f"peer-id = bstr .size {peers.ID_BYTES}",
    f"string = tstr .size (0..{4 * envelope.MAX_TEXT}) ; at most {envelope.MAX_TEXT} characters",
    f"at most {envelope.MAX_ATTRIBUTES} bytes, without tags",
    f"incarnation: bstr .size {peers.INCARNATION_BYTES}",
    f"uint63 = 0..{limits.MAX_OFFSET}",
    f"has its maximum of peers ({defaults.DEFAULT_MAX_PEERS:,})",
    "A Welcome with `attempt` 0 responds to no Hello",
    f"with code {Code.SERVICE:d}.",
    f"{defaults.MIN_WEIGHT:g} to {defaults.MAX_WEIGHT:g}",
    f"{attributes.HASH_BYTES} bytes of BLAKE2b of each target's address",
    f"of {attributes.MAX_TARGETS} at most",
    f"at most {published.MAX_NAME} characters, so that a URL of it",
    f"At most {published.MAX_NAMES} of a provider are served, and {published.MAX_EDGE_NAMES:,} at an edge: "
    f"{published.MAX_NAMES} of {defaults.MAX_SERVICES_BYTES // published.MAX_NAMES - 2} characters, with a head of 2 "
    f"bytes each, are the {size(defaults.MAX_SERVICES_BYTES)}",
    f"at most {published.MAX_GRANTS} (of 7 bytes: `granted` takes {GRANTED_BYTES} bytes at most)",
    f"queues up to {size(outboxes.OUTBOX_BYTES)} and {outboxes.OUTBOX_MESSAGES:,} messages",
    f"retries every {1000 * outboxes.RETRY_S:g} ms",
    f"`interest: bytes` | both | {interest.INTEREST_BYTES} bytes, as bits",
    f"BLAKE2b of it, of {interest.BUCKET_BYTES} bytes, modulo {8 * interest.INTEREST_BYTES}",
    f"by chance, once in {8 * interest.INTEREST_BYTES} for each pair",
    f"more than {switch.FEW} peers",
    f"Ups take {size(switch.LIST_BYTES)} at least",
    *(
        f"{kind} = [{number}"
        for number, kind in enumerate(
            ("hello", "welcome", "up", "down", "announce", "renew", "renewed", "leave", "refused")
        )
    ),
]

MESSAGES = [
    "Frame 0 is a CBOR item",
    f"of at most {size(limits.MAX_HEAD)} and six levels",
    f"Payloads of {size(limits.RAW_PAYLOAD)} or more are frames of their own",
    f"behind it, at most {limits.MAX_RAW_FRAMES}, in the order",
    f"Frames of {size(limits.RAW_PAYLOAD)} or more are forwarded without a copy",
    f"events: [*{limits.MAX_EVENTS} event]",
    f"inline = [{wire.DATA}, stream: uint63, offset: uint63, payload: bstr .size (1..{limits.RAW_PAYLOAD - 1})]",
    f"raw = [{wire.DATA}, stream: uint63, offset: uint63, length: {limits.RAW_PAYLOAD}..{limits.MAX_PAYLOAD}]",
    f"ack = [{wire.ACK},",
    f"open = [{wire.OPEN},",
    f"accept = [{wire.ACCEPT},",
    f"refuse = [{wire.REFUSE},",
    f"eof = [{wire.EOF},",
    f"reset = [{wire.RESET},",
    f"abort = [{wire.ABORT},",
    f"resume = [{wire.RESUME}, grace: 0.0..{wire.MAX_GRACE_S},",
    f"streams: [0*{limits.RESUME_PAGE} live]",
    f"drain = [{wire.DRAIN}]",
    f"goodbye = [{wire.GOODBYE},",
    f"probe = [{wire.PROBE}]",
    "code = uint63 ; " + ", ".join(f"{code:d} {code.name.lower()}" for code in Code),
    f"uint63 = 0..{limits.MAX_OFFSET} ; 2**63 - 1",
    f"served = [{wire.SERVED},",
    f"string = tstr .size (0..{4 * limits.MAX_TEXT}) ; at most {limits.MAX_TEXT} characters",
    "Ids count up from 1,",
    "`final + 1`",
    f"They are delivered first (within {limits.RESET_LINGER_S:g} s)",
    f"An unknown code counts as {Code.OTHER:d}.",
    *(f"| {code:d} {code.name.lower()} |" for code in Code),
    f"as after {Code.TARGET:d}",
]

EPOCHS = [
    "hold events, from 0.",
    f"sent alone after {limits.PATH_ACK_DELAY_S:g} s",
    f"at once after {size(limits.PATH_ACK_BYTES)}",
    f"a sender that has {size(limits.IN_FLIGHT_MIN - limits.QUANTUM_MIN)} in flight",
    f"or {limits.LOSS_TIMEOUT_S:g} s without progress",
    f"max({limits.PROBE_MIN_S:g} s, 4 round trips) without progress",
    f"when Probe number {limits.STALL_PROBES + 1} would be due",
    f"after {STALL_PROBES_S:g} s or {STALL_ROUND_TRIPS} round trips:",
    "is left within 2 s",
    f"bounded: by {size(limits.IN_FLIGHT_MIN)} at first, then by 2 times the delivery rate",
    f"(taken as {1000 * congestion.LEAST_QUEUE_S:g} ms at least), from {size(limits.IN_FLIGHT_MIN)} to"
    f" {size(limits.IN_FLIGHT_MAX)}",
    f"Beyond {size(limits.IN_FLIGHT_MIN)} in flight",
    f"may take {1000 * limits.UNSENT_S:g} ms at the delivery rate ({size(limits.IN_FLIGHT_MIN)} at least)",
    f"more than {congestion.LATE:g} times the least",
    f"More than {congestion.DOUBTFUL:g} times the least",
    f"is measured every {limits.REMEASURE_MAX_S:g} s.",
    f"fall to {size(limits.DRAINED_BYTES)} for a round trip",
    f"not again for {limits.REMEASURE_MIN_S:g} to {limits.REMEASURE_MAX_S:g} s",
    f"{limits.REMEASURE_MAX_S:g} s after the least has grown",
    f"at most 1/{limits.BATCH_SHARE} of the bound, and what arrives in {1000 * limits.MESSAGE_S:g} ms,"
    f" but at least {size(limits.QUANTUM_MIN)};",
    f"streams that wait, at least {size(limits.QUANTUM_MIN)}, at most {size(limits.MAX_PAYLOAD)}.",
    "The opener counts on by 2 at least",
    f"by {paths.RANK_BYTES} bytes of BLAKE2b of its own peer id",
    f"when Probe number {limits.STALL_PROBES + 1} would be due, the session goes back",
    f"up for {limits.SETTLE_MIN_S:g} to {1.5 * limits.SETTLE_MIN_S:g} s",
    f"doubles, up to {limits.SETTLE_MAX_S:g} s, each time a path is lost within {limits.STEADY_S:g} s after",
    f"that is lost later makes it {limits.SETTLE_MIN_S:g} s again",
    f"the next epoch begins after {limits.RESTART_MIN_S:g} s",
    f"up to {limits.RESTART_MAX_S:g} s. If several paths",
    "is not number 0, the beginning was lost",
    f"up to {limits.RESUME_PAGE} streams in ascending order",
    f"Abort with the code {Code.GONE:d} (gone)",
    "Open again, from offset 0",
]

ENDS = [
    f"as long as the window moves within {limits.RESET_LINGER_S:g} s",
    f"or {limits.RESET_LINGER_S:g} s have passed",
    f"{limits.RESET_LINGER_S:g} s without delivering the bytes before a reset",
    f"smaller grace + {limits.ALLOWANCE_S:g} s",
    f"The {limits.ALLOWANCE_S:g} s cover",
    f"up to {limits.LOSS_TIMEOUT_S:g} s apart",
    f"may need {TIMES.reconnect_max_s:g} s (interval of reconnection)",
    f"+ {TIMES.connect_timeout_s:g} s (connect timeout)",
    f"waits for the grace + {limits.ALLOWANCE_S:g} s",
    f"one that noticed {limits.LOSS_TIMEOUT_S:g} s late gives up {limits.LOSS_TIMEOUT_S:g} + {limits.ALLOWANCE_S:g} ="
    f" {limits.LOSS_TIMEOUT_S + limits.ALLOWANCE_S:g} s after the grace, within the promised {PROMISED_S} s",
    f"a link timeout of at most {limits.LOSS_TIMEOUT_S:g} s",
    f"looked at every {driver.MAX_TIMER_S:g} s",
    f"forgotten {driver.FORGET_S:g} s after the grace",
]

TIMERS = [
    f"| {link_tls.HANDSHAKE_S:g} | TLS handshake of a link",
    f"| {defaults.DEFAULT_LINK_TIMEOUT_S:g} | link: silence",
    f"| {TIMES.lease_s:g} | lease of a peer at the broker (2/3 of",
    f"| {port.GREETING_S:g} | from a TCP connection to the Hello",
    f"| {router.REJECTED_S:g} | from Refused",
    f"| {TIMES.renew_s:g} | a peer sends Renew",
    f"| {TIMES.reconnect_min_s:g} to {TIMES.reconnect_max_s:g} | reconnection: begins at {TIMES.reconnect_min_s:g},",
    f"up to {link.REFUSED_MAX_S:g} while the key is refused",
    f"| {TIMES.connect_timeout_s:g} | TCP connect; handshake ({sockets.BROKER_HANDSHAKE_S:g} with keys,",
    f"| {link.GREET_S:g} to {link.GREET_MAX_S:g} | between two Hellos",
    f"| {link.RESOLVE_AFTER_S:g} | an address that does not respond",
    f"| {diagnosis.EXAMINE_AFTER_S:g}, {diagnosis.PROBE_S:g} | a handshake that takes longer than"
    f" {diagnosis.EXAMINE_AFTER_S:g}, or fails,",
    f"for {diagnosis.PROBE_S:g} at most, and again after {diagnosis.EXAMINE_AGAIN_S:g}",
    f"| {limits.LOSS_TIMEOUT_S:g} | session: no acknowledgement",
    f"| {limits.PROBE_MIN_S:g} | first Probe",
    f"| {STALL_PROBES_S:g} | {limits.STALL_PROBES} Probes unacknowledged",
    f"the next due ({STALL_ROUND_TRIPS} round trips,",
    f"| {limits.PATH_ACK_DELAY_S:g} | acknowledgement of messages",
    f"| {limits.STREAM_ACK_DELAY_S:g} | acknowledgement of delivery. After {limits.PATH_ACK_DELAY_S:g} for half of",
    f"at once for 1/{receiver.ACK_SHARE} of the window (or {size(receiver.ACK_LEAST)}, if that is less than 1/4)",
    f"| {limits.RESTART_MIN_S:g} to {limits.RESTART_MAX_S:g} | between two epochs",
    f"| {limits.SETTLE_MIN_S:g} to {1.5 * limits.SETTLE_MIN_S:g} | a path is up before a session moves to it; doubled,"
    f" up to {limits.SETTLE_MAX_S:g}, after a move to one that was lost within {limits.STEADY_S:g}",
    f"| {limits.RESET_LINGER_S:g} | delivery of the bytes before a reset",
]

BOUNDS = [
    f"| 1 to {limits.MAX_PAYLOAD:,} bytes; in the CBOR below {limits.RAW_PAYLOAD:,} |",
    f"| {limits.MAX_HEAD:,} bytes; a sender stops filling at {limits.BATCH_INLINE:,} |",
    f"a sender stops at {limits.BATCH_EVENTS:,} and {size(limits.BATCH_BYTES)}, or 1/{limits.BATCH_SHARE} of what may",
    f"a receiver rejects more than {limits.MAX_EVENTS:,} events",
    f"| {limits.LAST_WORDS_MAX:,}; a peer with more may open no streams |",
    f"raw frames of a message | {limits.MAX_RAW_FRAMES} |",
    f"streams in a page | {limits.RESUME_PAGE};",
    f"| {limits.RESUME_MAX:,}; of those that have ended here {limits.LAST_WORDS_MAX:,} and",
    "each takes 8 bytes until the epoch ends",
    f"from the reservation to {size(limits.WINDOW_MAX)}; it doubles when half of it is delivered within 2 round trips",
    f"memory / 2 / {budget.DIRECTIONS} directions / max connections, at least {size(budget.RESERVED_MIN)},"
    f" at most {size(budget.RESERVED_MAX)}; {RESERVED:,} bytes by default",
    f"{size(limits.WINDOW_INITIAL)} while less than 1/4 of the shared pool",
    "memory / 2 in all.",
    f"at most 1/{budget.POOL_SHARE} of what is free to it, and at most {size(limits.WINDOW_INITIAL)} plus half",
    "less than " + "{} ({}, {})".format(*map(size, budget.TIERS)) + " leave 1/2 (1/4, 1/8) of the pool to others",
    f"messages in flight on a path | {limits.IN_FLIGHT_MESSAGES} |",
    f"peers of a broker | {defaults.DEFAULT_MAX_PEERS:,} |",
    f"messages in a ZeroMQ pipe to a peer | {sockets.HIGH_WATER:,} |",
    f"TLS handshakes of links at a time | {handshakes.MOST_HANDSHAKES} |",
    f"bytes before a Hello | {size(connections.GREETING_BYTES)} |",
    f"{size(connections.BACKLOG_BYTES)}; {size(connections.BACKLOGS_BYTES)} of all peers",
    f"both {limits.VERSION} so far",
]

EXAMPLE = re.compile(r"An example: .*?nothing below 900 is sent again\.", re.DOTALL)
STATES = re.compile(r"\| step \| OPENING .*?\n\n.*?^7\. [^\n]*$", re.DOTALL | re.MULTILINE)


def test_every_number_is_the_codes() -> None:
    assert envelope.FABRIC_VERSION == limits.VERSION == limits.VERSION_LEAST == envelope.FABRIC_VERSION_LEAST
    assert wire.MAX_DEPTH == envelope.MAX_DEPTH == 6
    assert STALL_PROBES_S < 2
    assert limits.LOSS_TIMEOUT_S + limits.ALLOWANCE_S < PROMISED_S
    assert TIMES.connect_timeout_s * link.HANDSHAKE_TIMEOUTS == sockets.BROKER_HANDSHAKE_S
    assert TIMES.link_timeout_s == defaults.DEFAULT_LINK_TIMEOUT_S
    text = FILE.read_text()
    for pattern in (EXAMPLE, STATES):  # tested on their own
        text, count = pattern.subn("", text)
        assert count == 1
    text = plain(re.sub(r"^[1-5]\. ", "", text, flags=re.MULTILINE))
    for claim in (*FABRIC, *MESSAGES, *EPOCHS, *ENDS, *TIMERS, *BOUNDS):
        assert plain(claim) in text, f"docs/protocol.md does not say {claim!r}"
    claims = sorted(map(plain, (*FABRIC, *MESSAGES, *EPOCHS, *ENDS, *TIMERS, *BOUNDS, *NAMES)), key=len, reverse=True)
    for claim in claims:
        text = text.replace(claim, "")
    assert not re.findall(r"\S*\d\S*", text), "numbers that this test does not know"


def table(head: str) -> dict[str, dict[str, str]]:
    """Return the rows of the table whose first cell is `head`, by their first cells and by column."""
    lines = FILE.read_text().split(f"| {head} |", 1)[1].split("\n\n", 1)[0].splitlines()
    columns = [cell.strip() for cell in lines[0].strip("|").split("|")]
    rows = {}
    for line in lines[2:]:
        first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[first] = dict(zip(columns, cells, strict=True))
    return rows


def test_the_states_of_a_stream_are_the_codes() -> None:
    rows = table("step")
    expected = {
        f"← {step.value}" if step.name.startswith("RECEIVE_") else step.value: {
            state.name: after.name if (after := TRANSITIONS[state].get(step)) is not None else ""
            for state in State
            if state is not State.CLOSED
        }
        for step in Step
    }
    written = {step: {state: cell.partition(" ")[0] for state, cell in cells.items()} for step, cells in rows.items()}
    assert written == expected


def test_the_phases_of_a_session_are_the_codes() -> None:
    assert table("change") == {
        change.value: {
            phase.name: after.name if (after := epochs.TRANSITIONS[phase].get(change)) is not None else ""
            for phase in epochs.Phase
        }
        for change in epochs.Change
    }


def diagnostic(value: object) -> str:
    """Write a CBOR item as people do (RFC 8949, 8), and only the first byte of a long string."""
    match value:
        case list():
            return f"[{', '.join(map(diagnostic, value))}]"
        case bool():
            return str(value).lower()
        case bytes():
            return f"h'{value[:1].hex()}…'"
        case _:
            return str(value)


class Ends:
    """An edge and a provider with the default memory, whose messages go where the test lets them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.budget = Budget(total_bytes=MEMORY, max_streams=defaults.DEFAULT_MAX_CONNECTIONS)
        self.edge, self.provider = (
            Session(
                opener=opener,
                version=1,
                budget=self.budget,
                grace_s=defaults.DEFAULT_GRACE_S,
                wake=lambda: None,
                now=0.0,
            )
            for opener in (True, False)
        )

    def pass_on(self, sender: Session, receiver: Session) -> list[str]:
        """Deliver what one end has to say; return it as the document writes it."""
        lines = []
        for _, frames in sender.flush(self.now):
            receiver.receive("a", frames, self.now)
            lines.append(diagnostic(cbor2.loads(bytes(frames[0]))))
        return lines

    def settle(self) -> None:
        while self.pass_on(self.edge, self.provider) + self.pass_on(self.provider, self.edge):
            pass


def test_the_example_is_what_sessions_say() -> None:
    ends = Ends()
    edge, provider = ends.edge, ends.provider
    for end in (edge, provider):
        end.path_up("a", 0.0)
    ends.settle()
    client = Stream(opener=True, service="web", client="192.0.2.1:5", budget=ends.budget)
    edge.open(client)
    client.write(b"GET /")
    ends.pass_on(edge, provider)
    target = next(notice.stream for notice in provider.notices if notice.kind is Kind.OPENED)
    assert target is not None
    target.accept()
    target.consume(5, now=0.0)
    target.write(bytes(900))
    ends.now = 1.0  # so that the request is acknowledged
    ends.settle()
    client.consume(400, now=1.0)
    target.write(b"d" * 100)
    provider.flush(1.0)  # lost with the link
    for end in (edge, provider):
        end.path_down("a", 1.0)
        end.path_up("a", 1.0)
    said = []
    pages = [(edge, "provider → edge", provider.flush(1.0)), (provider, "edge → provider", edge.flush(1.0))]
    for end, direction, messages in pages:
        for path_id, frames in messages:
            said.append(f"{direction} {diagnostic(cbor2.loads(bytes(frames[0])))}")
            end.receive(path_id, frames, 1.0)
    said += [f"provider → edge {line}" for _ in range(2) for line in ends.pass_on(provider, edge)]
    said += [f"edge → provider {line}" for line in ends.pass_on(edge, provider)]
    example = EXAMPLE.search(FILE.read_text())
    assert example is not None
    written = [
        plain(re.sub(r"\]   .*", "]", line))
        for line in example[0].splitlines()
        if re.match(r"    (edge|provider) ", line)
    ]
    assert written == said


@pytest.mark.parametrize("where", ["0.25 s (interval", "6,710 bytes", "after 1.75 s", "| 4 | lease", "[*2048 event]"])
def test_a_wrong_number_is_noticed(where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = FILE.read_text()
    assert where in text
    wrong = tmp_path / "protocol.md"
    wrong.write_text(text.replace(where, re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), where, count=1)))
    monkeypatch.setattr(f"{__name__}.FILE", wrong)
    with pytest.raises(AssertionError):
        test_every_number_is_the_codes()
