"""What each tunnel makes of a TCP connection: `python -m benchmarks.behaviour [--peers DIR]` prints a table.

Both ends are sockets of this process, so each result is what the kernel reports: bytes, an end of file, a reset, or
nothing within `WAIT_S`.
"""

import contextlib
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cyclopts

from benchmarks.load import hang_up
from benchmarks.local import HOST, BenchmarkError, prefer, raise_descriptor_limit
from benchmarks.peers import SIDES
from benchmarks.relay import Path as Link
from benchmarks.sides import Kind, Side
from benchmarks.targets import Target

WAIT_S: Final = 10.0
"""What has not arrived by then counts as lost."""
OUTAGE_S: Final = 1.0
TIMES: Final = 5
"""How often each check is run, with the side started anew: the result may be a race."""
TOKEN_BYTES: Final = 8
TEXT: Final = bytes(range(256)) * 256
"""64 KiB: no more than a kernel buffers before anybody reads."""
BANNER: Final = b"220 ready\r\n"


@dataclass(frozen=True)
class Pair:
    """A connection through a side: the client's socket and the target's."""

    client: socket.socket
    target: socket.socket


class Far:
    """The target: it finds the connection that a client made."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        listener.settimeout(WAIT_S)

    def accept(self, token: bytes) -> socket.socket:
        """Return the connection that begins with `token`; others are of attempts that failed.

        Raises:
            TimeoutError: it did not come.
        """
        while True:
            sock, _ = self._listener.accept()
            sock.settimeout(WAIT_S)
            with contextlib.suppress(OSError):
                if _read(sock, len(token)) == token:
                    return sock
            sock.close()

    def greet_until_readable(self, client: socket.socket) -> None:
        """Send `BANNER` on every connection until `client` has something to read.

        Raises:
            TimeoutError: nothing arrived.
        """
        with contextlib.ExitStack() as greeted:
            while client not in (ready := select.select([client, self._listener], [], [], WAIT_S)[0]):
                if not ready:
                    raise TimeoutError
                sock, _ = self._listener.accept()
                greeted.enter_context(sock)
                with contextlib.suppress(OSError):  # one of an attempt that failed
                    sock.sendall(BANNER)

    @contextlib.contextmanager
    def pair(self, port: int) -> Iterator[Pair]:
        """Connect through the side at `port`."""
        token = secrets.token_bytes(TOKEN_BYTES)
        with socket.create_connection((HOST, port), timeout=WAIT_S) as client:
            client.sendall(token)
            with self.accept(token) as target:
                yield Pair(client, target)

    def responds(self, port: int) -> bool:
        """Return whether the side at `port` leads here by now."""
        with contextlib.suppress(OSError), self.pair(port) as pair:
            pair.target.sendall(b"!")
            return pair.client.recv(1) == b"!"
        return False


@dataclass(frozen=True)
class Place:
    """A side that runs: its port, the target behind it, and the link between its halves."""

    port: int
    far: Far
    link: Link

    def pair(self) -> AbstractContextManager[Pair]:
        """Connect through the side."""
        return self.far.pair(self.port)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Begin when the link is down, end when it is back."""
        cut = threading.Thread(target=self.link.cut, args=(OUTAGE_S,))
        with socket.create_connection((HOST, self.link.port), timeout=WAIT_S) as witness:
            cut.start()
            try:
                with contextlib.suppress(ConnectionError):
                    _read_all(witness)
                yield
            finally:
                cut.join()


def _read(sock: socket.socket, count: int) -> bytes:
    """Read so many bytes, fewer at an end of file."""
    got = b""
    while len(got) < count and (data := sock.recv(min(count - len(got), len(TEXT)))):
        got += data
    return got


def _read_all(sock: socket.socket) -> bytes:
    return _read(sock, sys.maxsize)


def _ends_with_reset(sock: socket.socket) -> bool:
    try:
        sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def _half_closes(one: socket.socket, other: socket.socket) -> bool:
    one.sendall(TEXT)
    one.shutdown(socket.SHUT_WR)
    received = _read_all(other)
    other.sendall(TEXT)
    other.close()
    return received == TEXT and _read_all(one) == TEXT


def client_half_closes(place: Place) -> bool:
    """After the client's end of file the target can still respond."""
    with place.pair() as pair:
        return _half_closes(pair.client, pair.target)


def target_half_closes(place: Place) -> bool:
    """After the target's end of file the client can still write."""
    with place.pair() as pair:
        return _half_closes(pair.target, pair.client)


def client_resets(place: Place) -> bool:
    """A reset of the client is one at the target."""
    with place.pair() as pair:
        hang_up(pair.client)
        return _ends_with_reset(pair.target)


def target_resets(place: Place) -> bool:
    """A reset of the target is one at the client."""
    with place.pair() as pair:
        hang_up(pair.target)
        return _ends_with_reset(pair.client)


def target_speaks_first(place: Place) -> bool:
    """A silent client reads what the target sends first."""
    with socket.create_connection((HOST, place.port), timeout=WAIT_S) as client:
        place.far.greet_until_readable(client)
        return _read(client, len(BANNER)) == BANNER


def client_waits(place: Place) -> bool:
    """A client that comes while the link is down is served when it is back."""
    with place.outage(), place.pair() as pair:
        pair.target.sendall(b"!")
        return pair.client.recv(1) == b"!"


def connection_survives(place: Place) -> bool:
    """A connection continues in both directions after the link was reset."""
    with place.pair() as pair:
        place.link.cut(OUTAGE_S)
        pair.client.sendall(b"?")
        asked = pair.target.recv(1)
        pair.target.sendall(b"!")
        return asked == b"?" and pair.client.recv(1) == b"!"


CHECKS: Final[dict[str, Callable[[Place], bool]]] = {
    "half-close of the client": client_half_closes,
    "half-close of the target": target_half_closes,
    "reset of the client": client_resets,
    "reset of the target": target_resets,
    "target speaks first": target_speaks_first,
    "client waits for the link": client_waits,
    "connection survives the link": connection_survives,
}


def holds(check: Callable[[Place], bool], side: Side, folder: Path) -> bool:
    """Start `side` anew, with a relay between its halves, and return whether `check` holds.

    Raises:
        BenchmarkError: it did not start.
    """
    with closing(socket.create_server((HOST, 0), backlog=64)) as listener:
        far = Far(listener)
        target = Target(listener.getsockname()[1], far.responds)
        with side.running(folder, target, descriptors=raise_descriptor_limit(), path=(0.0, 0.0)) as (stand, link):
            assert link is not None, f"{side.title} has no link"
            try:
                return check(Place(stand.port, far, link))
            except OSError:
                return False


def main(*, peers: Path | None = None) -> None:
    """Print what each tunnel that is installed makes of a connection, as a Markdown table.

    Parameters
    ----------
    peers
        Folder with more programs, which win over those on PATH.
    """
    if peers is not None:
        prefer(peers)
    tunnels = [side for side in SIDES if side.kind in (Kind.TUNNEL, Kind.OURS) and not side.http]
    print("| |", " | ".join(CHECKS), "|")
    print("|---" * (len(CHECKS) + 1) + "|")
    with tempfile.TemporaryDirectory(prefix="goreprox-behaviour-") as folder:
        for side in (side for side in tunnels if not side.missing):
            found = [[holds(check, side, Path(folder)) for _ in range(TIMES)] for check in CHECKS.values()]
            says = ["yes" if all(each) else "sometimes" if any(each) else "no" for each in found]
            print("|", side.title, "|", " | ".join(says), "|", flush=True)
    for side in tunnels:
        if side.missing:
            print(f"left out: {side.title} ({', '.join(side.missing)} not found)", file=sys.stderr)


if __name__ == "__main__":
    try:
        cyclopts.run(main)
    except (BenchmarkError, subprocess.SubprocessError) as error:
        sys.exit(f"benchmarks: {error}")
