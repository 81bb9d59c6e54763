"""What every role does before its first connection: the log, warnings of what was configured, the limit of files.

Like `goreprox.cli.main` it imports little at the top.
"""

from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from goreprox.cli.options import RoleOptions

if TYPE_CHECKING:
    from goreprox.config.addresses import Address


def begin(options: RoleOptions, unknown_variables: Iterable[str], addresses: Iterable["Address"]) -> None:
    """Set up the log, and warn of variables that mean nothing and of links in plaintext."""
    from loguru import logger

    from goreprox.process.log import configure

    configure(options.log_level, as_json=options.log_json)
    for line in unknown_variables:
        logger.bind(event="unknown_variable").warning("{}", line)
    if options.config is not None:
        logger.bind(event="config", file=str(options.config)).info("options are read from {}", options.config.resolve())
    exposed = [str(address) for address in addresses if not address.is_loopback]
    if options.insecure and exposed:
        logger.bind(event="insecure", addresses=exposed).warning(
            "--insecure: links on {} are plaintext; anyone who can reach that port can join", ", ".join(exposed)
        )


def run_role(role: Coroutine[Any, Any, None]) -> None:
    """Run a role to its end, with as many files as this process may open."""
    import asyncio

    raise_file_limit()
    asyncio.run(role)


def raise_file_limit() -> None:
    """Let this process open as many files as it may: every connection is one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    # macOS reports no limit and takes none above OPEN_MAX (10,240); the old limit is still one to run with.
    for limit in (hard, 10_240):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (ValueError, OSError):
            continue
        return
