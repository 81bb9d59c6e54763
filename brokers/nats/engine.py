"""What a carrier needs of NATS: a connection to one of several servers. Tests have an engine of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from brokers.carrier import Buffer
from brokers.keys import KeyPair


@dataclass(frozen=True, slots=True)
class Server:
    """A server of a cluster."""

    host: str
    port: int
    plaintext: bool
    """Whether it may be without TLS."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nats://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    """As whom to log in: by the keys of links, or by the file of an operator; neither: as nobody."""

    keys: KeyPair | None = None
    credentials: Path | None = None


class Listener(Protocol):
    """What the user of a connection implements. Called from the event loop; must not raise."""

    def received(self, subject: str, payload: bytes) -> None:
        """Take a message."""

    def denied(self) -> None:
        """Take note that the server lets us not do something that we have tried."""

    def lost(self, reason: str) -> None:
        """Take note, once, that the connection is lost, or the server is about to end it."""


class Connection(Protocol):
    """A connection to a server."""

    at: str
    """The server, for people."""

    def publish(self, subject: str, parts: Sequence[Buffer], *, reply: str = "") -> bool:
        """Send a payload, which is all its parts, without blocking; False if it was dropped, as too much waits already.

        If nobody has subscribed to `subject`, the server sends an empty message to `reply`, if that is given.
        """

    async def allowed(self) -> Sequence[str] | None:
        """Return the subjects that we may publish; None: all.

        Raises:
            OpenError: the server does not say.
        """

    async def check(self, timeout_s: float) -> None:
        """Wait for a response of the server.

        Raises:
            TimeoutError: there is none.
        """

    async def close(self, *, linger_s: float) -> None:
        """Disconnect; what was published has `linger_s` seconds to go out. Idempotent."""


class Engine(Protocol):
    """Makes connections, each to another server than the one before, if there are several."""

    label: str
    """Where the servers are, for people."""

    async def connect(self, subscriptions: Sequence[str], inbox: str, listener: Listener) -> Connection:
        """Return a connection with these subscriptions, to which responses come at `inbox`.

        Raises:
            OpenError: there is none.
        """
