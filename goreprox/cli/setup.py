"""What options say about a role: its configuration, and the file that some of them come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from goreprox.config.roles import BrokerConfig, EdgeConfig, ProviderConfig, ServerConfig

Config = ServerConfig | EdgeConfig | BrokerConfig | ProviderConfig


class Setup(NamedTuple):
    """A role that could be run."""

    config: Config
    file: Path | None

    def run(self, arguments: Sequence[str]) -> None:
        """Run the role, which these arguments ask for, to its end.

        Networking is imported here, so that mistakes in options are reported without.
        """
        from goreprox.cli.launch import launch  # noqa: PLC0415 -- takes long

        launch(self.config, self.file, arguments)
