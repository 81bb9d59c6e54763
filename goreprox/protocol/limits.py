"""The numbers of the protocol, each with its reason."""

KIB = 1024
MIB = 1024 * KIB

VERSION = 1
"""Version of the session protocol that we speak."""
VERSION_LEAST = 1
"""The oldest version that we understand."""
ACKS_BEFORE_EOF = "acks-before-eof"
"""The attribute of a peer whose Eof or Reset follows an Ack of all that was delivered before it."""

MAX_OFFSET = 2**63 - 1
"""Offsets, ids, epochs and sequence numbers: at 10 Gbit/s a stream takes 230 years to get there."""
MAX_NAME = 64
"""Characters of the name of a service."""
MAX_TEXT = 256
"""Characters of a reason or an address."""

RAW_PAYLOAD = 16 * KIB
"""Payloads from this size on are frames of their own: copying less is cheaper than a frame."""
MAX_HEAD = 256 * KIB
"""The CBOR frame of a message. Decoding takes at worst 64 times as much (empty lists): 16 MiB, for a moment."""
MAX_PAYLOAD = MIB
"""One Data event."""
MAX_RAW_FRAMES = 64
"""Raw frames in one message."""
BATCH_INLINE = 96 * KIB
"""A batch is full once its CBOR holds this: one more payload (16 KiB) and 1,024 events of 60 bytes still fit."""
BATCH_EVENTS = 1024
MAX_EVENTS = 2 * BATCH_EVENTS
"""Ours have at most one more than `BATCH_EVENTS`. 256 KiB would hold 29,000 Opens: 60 MiB of streams."""
BATCH_BYTES = MIB
"""A batch is full once its payloads reach this: before it has more than `MAX_RAW_FRAMES`, of at least `RAW_PAYLOAD`."""
BATCH_SHARE = 4
"""A batch is also full at this part of what may be in flight: if one filled the path, the next would be sent only once
it is acknowledged, and the path would seem half as fast as it is."""
RESUME_PAGE = 512
"""Streams in one page of a resume: 512 * 40 bytes = 20 KiB. In each turn of the loop one page is sent, and one of the
peer's is responded to: 512 Aborts of 60 bytes, 30 KiB."""

LAST_WORDS_MAX = 65_536
"""Ends of streams that a peer may leave unacknowledged and still open more: 10,000 refused a second for 6 s."""
RESUME_MAX = 1_000_000
"""Streams in all pages of one resume: the most connections that can be configured. Those of them that have ended here
wait for a response and take 8 bytes each: at most `LAST_WORDS_MAX`, whose ends were not acknowledged, and our
`max_streams`, which may have ended within the last round trip: 8 * (65,536 + 10,000) = 590 KiB by default."""

WINDOW_MAX = 16 * MIB
"""Of a stream and direction: 1 Gbit/s at 130 ms."""
WINDOW_INITIAL = 64 * KIB
"""Of a new stream, while most of the shared pool is free."""

IN_FLIGHT_MIN = 64 * KIB
"""Unacknowledged bytes on a path: half a second at 1 Mbit/s, so that signs of life (every 2 s) get through."""
IN_FLIGHT_MAX = 32 * MIB
IN_FLIGHT_MESSAGES = 400
"""Below what ZeroMQ queues: a high-water mark of 1,000 is sure to take 500, as reads are noted in steps of half."""
DRAINED_BYTES = 32 * KIB
"""In flight while a round trip is measured: `PATH_ACK_BYTES`, so that it is acknowledged at once."""
REMEASURE_MIN_S = 0.5
REMEASURE_MAX_S = 10.0
"""Between two such measurements: doubled when one finds nothing new. At 200 ms, two round trips in 10 s cost 4 %."""
UNSENT_S = 0.02
"""What the first link may have to send: several turns of a busy loop, so that it never runs dry between two of them."""
MESSAGE_S = 0.005
"""A message is delivered whole: at a hundredth of the rate at which it was sent it takes half a second."""
QUANTUM_MIN = 16 * KIB
"""What a stream may send in its turn, at least."""

STREAM_ACK_DELAY_S = 0.2
"""Delivery is acknowledged this late at most: nobody waits for it. A sixteenth of the window is acknowledged at once
(`receiver.ACK_SHARE`), half of the peer's reservation after `PATH_ACK_DELAY_S`."""
PATH_ACK_DELAY_S = 0.02
PATH_ACK_BYTES = IN_FLIGHT_MIN // 2
"""This many received bytes are acknowledged at once. A sender stops when less than `QUANTUM_MIN` of the least bound is
left; 48 KiB are then in flight, and it must not wait for the delay: its rate would be measured as 48 KiB in 20 ms, from
which the least bound follows again, so the path would stay at 2.4 MB/s for ever."""
PROBE_MIN_S = 0.25
STALL_PROBES = 2
"""After this many Probes without progress an established epoch ends when the next is due, if another path is up: after
0.25 + 0.5 + 1 = 1.75 s, or 7 * 4 round trips. So at round trips of up to 100 ms a new stream waits less than 3 s for a
frozen broker. 64 KiB in flight take 1.75 s at 0.3 Mbit/s; on a slower path the round trip is longer, too."""
LOSS_TIMEOUT_S = 6.0
"""An epoch ends after this long without progress, whatever other paths there are."""
RESTART_MIN_S = 0.05
RESTART_MAX_S = 2.0
"""Between two epochs begun on a path that stays up."""

SETTLE_MIN_S = 7.0
"""A path that is preferred is returned to once it has been up for this and up to half as long again, which differs from
session to session: longer than the 6 s after which a link to a frozen broker counts as lost."""
SETTLE_MAX_S = 300.0
"""Doubled up to this each time a path is lost within `STEADY_S` after a session has moved to it. So one that comes and
goes, in whatever rhythm, costs a session six moves until it waits for so long, or one in a minute."""
STEADY_S = 60.0

ALLOWANCE_S = 8.0
"""Added to the grace. Ends notice an outage up to 6 s apart, and after it reconnection may take 0.25 s (interval) + 2 s
(connect timeout). 8 s are enough for an end that noticed at once; 6 + 8 < 15 s bounds the one that noticed last."""
RESET_LINGER_S = 10.0
"""How long delivery of the bytes before a reset may take."""
