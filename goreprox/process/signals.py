"""The signals that end or change a process, and that wait where none may be delivered."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Final

SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2})
"""They wait from before `execve` until the new code has its handlers: by default each would end the process."""


def block_signals() -> None:
    """Let them wait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def unblock_signals() -> None:
    """Handle them again, those that waited first."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Return a context in which they wait."""
    block_signals()
    try:
        yield
    finally:
        unblock_signals()
