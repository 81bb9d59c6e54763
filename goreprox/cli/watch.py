"""Shows something again and again, until Ctrl-C."""

import sys
import time
from collections.abc import Callable
from typing import Final, NoReturn

from goreprox.errors import ControlError
from goreprox.process.log import say

EVERY_S: Final = 2.0
_CLEAR: Final = "\x1b[H\x1b[2J"


def repeat(frame: Callable[[], None]) -> NoReturn:
    """Call `frame`, which shows something, every `EVERY_S` seconds; later ones may find no process, as in a restart.

    Raises:
        ControlError: the first one does.
    """
    frame()
    while True:
        sys.stdout.flush()
        time.sleep(EVERY_S)
        try:
            frame()
        except ControlError as exc:
            say(f"goreprox: {exc}; retrying")


def clear() -> None:
    """Begin a frame on an empty screen, where there is one."""
    if sys.stdout.isatty():
        sys.stdout.write(_CLEAR)
