"""The options of a role, with their values and where each comes from: flag, variable, file or default."""

from collections.abc import Iterator

from goreprox.cli.app import sources
from goreprox.cli.problems import option
from goreprox.cli.setup import Config
from goreprox.cli.usage import origin
from goreprox.config.listed import Given, options_of


def given_options(role: str, config: Config) -> Iterator[Given]:
    """Yield those of the role that was read last, whose configuration is `config`."""
    known = options_of(config) | {"name": (config.process.own_name,), "runtime-dir": (str(config.process.lock_dir),)}
    is_joined = any(option(each) in ("join", "join-file") and each.tokens for each in sources.filled)
    for argument in sources.filled:
        name, tokens = option(argument), argument.tokens
        if not argument.parse or argument.children:
            continue
        values = known.get(name, tuple(token.value for token in tokens))
        if name == "join" and not tokens:
            values = ()
        by_default = "join string" if is_joined and name in ("name", "broker", "server") else "default"
        yield Given(role, name, values, origin(tokens[0]) if tokens else by_default)
