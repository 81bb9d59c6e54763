"""Reads the configuration of a running role again: its flags, its environment as it was at the start, and its file."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from goreprox.cli.app import ROLES, sources
from goreprox.cli.given import given_options
from goreprox.cli.problems import examine, option
from goreprox.cli.setup import Config
from goreprox.config.listed import Given
from goreprox.errors import ConfigError

C = TypeVar("C")


class Reread:
    """Belongs to the role that was configured last."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Read what `arguments`, and what they name, say."""
        self._arguments = arguments
        self._files = [
            (option(each), Path(each.tokens[-1].value).expanduser())
            for each in sources.filled
            if option(each) in ("config", "join-file") and each.tokens
        ]

    def given(self, config: Config) -> Iterator[Given]:
        """Yield the options of a configuration, and where they come from."""
        return given_options(self._arguments[0], config)

    def as_a(self, kind: type[C]) -> Callable[[], C]:
        """Return a function that reads a configuration of this kind, and raises ConfigError if it is not right.

        It imports nothing.
        """

        def read() -> C:
            for name, path in self._files:
                if path.exists() and not path.is_file():
                    raise ConfigError(f"{name} {path}: it is not a regular file, and cannot be read again")
            with sources.only(ROLES):
                found = examine(self._arguments[0], self._arguments)
            if isinstance(found, list):
                first, *more = found
                raise ConfigError(f"{first}{f' (and {len(more)} more: see `goreprox check`)' if more else ''}")
            assert isinstance(found.config, kind)
            return found.config

        return read
