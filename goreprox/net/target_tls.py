"""TLS towards targets: who they have to prove to be, and the handshakes with them.

Knows the names of targets and files of certificates; neither streams nor how a target is reached.
"""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from goreprox.config.values import Target
from goreprox.errors import ConfigError, StartError
from goreprox.net.certificates import target_context
from goreprox.net.handshakes import Handshakes
from goreprox.net.poller import Poller
from goreprox.net.tls import TlsSocket


class TargetTls:
    """Shakes hands with those targets that speak TLS."""

    def __init__(
        self, targets: Sequence[Target], poller: Poller, *, ca: Path | None, insecure: bool, timeout_s: float
    ) -> None:
        """Trust those who signed the certificates of `ca`, or else those whom the system trusts.

        If `insecure`, any certificate does.

        Raises:
            StartError: the file cannot be used.
        """
        self._hosts = {target.service: str(target.address.host) for target in targets if target.tls}
        self._handshakes = Handshakes(poller, timeout_s=timeout_s)
        try:
            self._context = target_context(ca, insecure=insecure) if self._hosts else None
        except ConfigError as exc:
            raise StartError(str(exc)) from exc

    def speaks(self, service: str) -> bool:
        """Whether the target of a service does."""
        return service in self._hosts

    def begin(
        self,
        service: str,
        sock: socket.socket,
        *,
        admit: Callable[[TlsSocket], None],
        lose: Callable[[OSError], None],
    ) -> Callable[[], None]:
        """Take over a connected socket; return what gives up. `admit` takes it over, or `lose` is told why not."""
        assert self._context is not None
        return self._handshakes.begin(sock, self._context, admit=admit, lose=lose, host=self._hosts[service])
