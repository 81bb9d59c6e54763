"""TLS towards targets: which certificates count, and the handshakes."""

import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from goreprox.config.addresses import Address, Target
from goreprox.net.handshakes import Handshakes
from goreprox.net.poller import Poller
from goreprox.net.tls import TlsSocket
from goreprox.net.trust import Trust


class TargetTls:
    """Shakes hands with those targets that speak TLS."""

    def __init__(
        self, targets: Sequence[Target], poller: Poller, *, ca: Path | None, insecure: bool, timeout_s: float
    ) -> None:
        """Trust certificates signed by those in the file `ca`, by default the system's; if `insecure`, any.

        The file is read again when it has changed.

        Raises:
            StartError: the file cannot be used.
        """
        self._hosts = {
            target.service: str(target.address.host)
            for target in targets
            if target.tls and isinstance(target.address, Address)
        }
        self._handshakes = Handshakes(poller, timeout_s=timeout_s)
        self._trust = Trust("target-ca", ca, insecure=insecure) if self._hosts else None

    def speaks(self, service: str) -> bool:
        """Whether the target of a service speaks TLS."""
        return service in self._hosts

    def begin(
        self,
        service: str,
        sock: socket.socket,
        *,
        admit: Callable[[TlsSocket], None],
        lose: Callable[[OSError], None],
    ) -> Callable[[], None]:
        """Take over a connected socket, for `admit`, or for `lose` with the reason; return what cancels it."""
        return self._handshakes.begin(sock, self.context(), admit=admit, lose=lose, host=self._hosts[service])

    def context(self) -> ssl.SSLContext:
        """Return the present context, of which there is one if any target speaks TLS."""
        assert self._trust is not None
        return self._trust.context()
