"""The life of a stream, as one of its two ends sees it.

The edge opens a stream (it is the opener), the provider accepts it (the acceptor). Either end has one local socket.
A stream is in exactly one `State`, and everything that can happen to it is a `Step`: something arrives from the peer,
or the local socket does something. `TRANSITIONS` says which state follows; a step that it does not list is a protocol
error of the side that took it.

The usual life is short:

- The opener begins in OPENING. The peer's Accept makes it OPEN. A Refuse leaves it in OPENING, since another provider
  may take it.
- The acceptor begins in DIALING, while the target is being connected. It becomes OPEN when the target accepts.
- An OPEN stream is CLOSED once both directions have ended and both ends know it.

A reset takes longer than one step, because the bytes before it are delivered first:

- RESETTING: our socket was reset. Its bytes, and the Reset, are on their way; when the peer has the Reset, the stream
  is CLOSED. What arrives meanwhile is dropped, because there is no socket for it.
- RESET: the peer's socket was reset. Its bytes are on their way to our socket; when that has taken them and was reset
  as well, the stream is CLOSED. What our socket still sends is dropped.

An abort, from either end, is immediate: CLOSED, whatever was on its way.
"""

import enum


class State(enum.Enum):
    """Where a stream is in its life."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is ten times as slow

    OPENING = "opening"
    """Opener: not yet accepted; bytes flow already."""
    DIALING = "dialing"
    """Acceptor: the target is being connected."""
    OPEN = "open"
    RESETTING = "resetting"
    """The local socket was reset: its bytes, and the Reset, are on their way to the peer."""
    RESET = "reset"
    """The peer's socket was reset: its bytes are on their way to the local socket."""
    CLOSED = "closed"


class Step(enum.Enum):
    """What can happen to a stream; the value names it in errors."""

    __hash__ = object.__hash__

    RECEIVE_ACCEPT = "Accept"
    RECEIVE_REFUSE = "Refuse"
    RECEIVE_DATA = "Data"
    RECEIVE_EOF = "Eof"
    RECEIVE_ACK = "Ack"
    RECEIVE_RESET = "Reset"
    RECEIVE_ABORT = "Abort"
    ACCEPT = "accept"
    REFUSE = "refuse"
    WRITE = "write"
    WRITE_EOF = "end of file"
    RESET = "reset"
    ABORT = "abort"
    FINISH = "finish"
    """Both directions have ended, or the reset has arrived."""


FROM_PEER = frozenset(
    {
        Step.RECEIVE_ACCEPT,
        Step.RECEIVE_REFUSE,
        Step.RECEIVE_DATA,
        Step.RECEIVE_EOF,
        Step.RECEIVE_ACK,
        Step.RECEIVE_RESET,
        Step.RECEIVE_ABORT,
    }
)
"""Steps of the peer; the others are ours."""

OPENING, OPEN, RESETTING, RESET = State.OPENING, State.OPEN, State.RESETTING, State.RESET
"""For comparisons per event: in Python 3.11 an attribute of an enumeration costs ten times as much as a global."""

# Writing, receiving and acknowledging keep a stream OPEN. They happen with every piece of data, so `Stream` looks these
# three up in other states only.
TRANSITIONS: dict[State, dict[Step, State]] = {
    State.OPENING: {
        Step.RECEIVE_ACCEPT: State.OPEN,
        Step.RECEIVE_REFUSE: State.OPENING,  # another session may carry it
        Step.RECEIVE_ABORT: State.CLOSED,
        Step.WRITE: State.OPENING,
        Step.WRITE_EOF: State.OPENING,
        Step.RESET: State.RESETTING,
        Step.ABORT: State.CLOSED,
    },
    State.DIALING: {
        Step.RECEIVE_DATA: State.DIALING,
        Step.RECEIVE_EOF: State.DIALING,
        Step.RECEIVE_ACK: State.DIALING,
        Step.RECEIVE_RESET: State.RESET,
        Step.RECEIVE_ABORT: State.CLOSED,
        Step.ACCEPT: State.OPEN,
        Step.REFUSE: State.CLOSED,
        Step.ABORT: State.CLOSED,
    },
    State.OPEN: {
        Step.RECEIVE_DATA: State.OPEN,
        Step.RECEIVE_EOF: State.OPEN,
        Step.RECEIVE_ACK: State.OPEN,
        Step.RECEIVE_RESET: State.RESET,
        Step.RECEIVE_ABORT: State.CLOSED,
        Step.WRITE: State.OPEN,
        Step.WRITE_EOF: State.OPEN,
        Step.RESET: State.RESETTING,
        Step.ABORT: State.CLOSED,
        Step.FINISH: State.CLOSED,
    },
    State.RESETTING: {
        Step.RECEIVE_ACCEPT: State.RESETTING,
        Step.RECEIVE_REFUSE: State.CLOSED,
        Step.RECEIVE_DATA: State.RESETTING,
        Step.RECEIVE_EOF: State.RESETTING,
        Step.RECEIVE_ACK: State.RESETTING,
        Step.RECEIVE_RESET: State.CLOSED,  # both sockets were reset: nobody is left to tell
        Step.RECEIVE_ABORT: State.CLOSED,
        Step.ABORT: State.CLOSED,
        Step.FINISH: State.CLOSED,
    },
    State.RESET: {
        Step.RECEIVE_RESET: State.RESET,  # repeated after a resume
        Step.RECEIVE_DATA: State.RESET,  # duplicates
        Step.RECEIVE_EOF: State.RESET,
        Step.RECEIVE_ACK: State.RESET,
        Step.RECEIVE_ABORT: State.CLOSED,
        Step.ACCEPT: State.RESET,
        Step.REFUSE: State.CLOSED,
        Step.WRITE: State.RESET,
        Step.WRITE_EOF: State.RESET,
        Step.RESET: State.CLOSED,
        Step.ABORT: State.CLOSED,
        Step.FINISH: State.CLOSED,
    },
    State.CLOSED: {},
}
