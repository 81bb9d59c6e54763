"""Which certificates of others count: those signed by the authorities in a file, by default the system's."""

import ssl
from pathlib import Path

from loguru import logger

from brokers import LimitedLog
from goreprox.errors import ConfigError, StartError
from goreprox.net.certificates import target_context
from goreprox.process.reloaded import Reloaded


class Trust:
    """Has the TLS context for connections that we make. Its file is read again when it has changed."""

    def __init__(self, option: str, ca: Path | None, *, insecure: bool = False) -> None:
        """Trust certificates signed by those in the file `ca`, which `option` names; if `insecure`, any.

        Raises:
            StartError: the file cannot be used.
        """
        self._option, self._ca = option, ca
        self._log = LimitedLog()
        files = [] if ca is None else [ca]
        self._context = Reloaded[ssl.SSLContext | None](
            lambda: files, lambda _: target_context(ca, insecure=insecure, option=option), None
        )
        try:
            self._context.refresh()
        except ConfigError as exc:
            raise StartError(str(exc)) from exc

    def context(self) -> ssl.SSLContext:
        """Return the present context; if the file cannot be used any more, that of before."""
        event = self._option.replace("-", "_")
        try:
            if self._context.refresh():
                logger.bind(event=event).info("{} {}: read again", self._option, self._ca)
        except ConfigError as exc:
            self._log.say(event, f"{exc}; keeping the certificates read before")
        assert self._context.value is not None
        return self._context.value
