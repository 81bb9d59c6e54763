"""TLS towards targets: which certificates count, and the handshakes."""

import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from loguru import logger

from brokers import LimitedLog
from goreprox.config.addresses import Address, Target
from goreprox.errors import ConfigError, StartError
from goreprox.net.certificates import target_context
from goreprox.net.handshakes import Handshakes
from goreprox.net.poller import Poller
from goreprox.net.tls import TlsSocket
from goreprox.process.reloaded import Reloaded


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
        self._ca = ca
        self._log = LimitedLog()
        files = [] if ca is None else [ca]
        self._context = Reloaded[ssl.SSLContext | None](
            lambda: files, lambda _: target_context(ca, insecure=insecure), None
        )
        try:
            if self._hosts:
                self._context.refresh()
        except ConfigError as exc:
            raise StartError(str(exc)) from exc

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
        try:
            if self._context.refresh():
                logger.bind(event="target_ca").info("target-ca {}: read again", self._ca)
        except ConfigError as exc:
            self._log.say("target_ca", f"{exc}; keeping the certificates read before")
        assert self._context.value is not None
        return self._context.value
