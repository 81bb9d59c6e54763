"""Entry point of the `goreprox` command. Imports little, so that Ctrl-C is handled while the rest is loaded."""

import contextlib
import os
import sys
from collections.abc import Sequence

INTERRUPTED = 130
"""The exit code that shells report for SIGINT."""
HIDDEN = "…"
ARGUMENTS = "_GOREPROX_ARGUMENTS"
"""A variable with all arguments, of a process whose own do not show its secrets. An upgrade in place keeps both."""


def entry() -> int:
    """Be the process of the `goreprox` command: hide secrets among its arguments, run it, and return its exit code."""
    try:
        _hide_secrets()
    except KeyboardInterrupt:
        return INTERRUPTED
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see `goreprox.cli.main.main`."""
    try:
        _open_standard_streams()
        from goreprox.cli.main import main as run  # noqa: PLC0415 -- takes long

        return run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def shown(arguments: Sequence[str]) -> list[str]:
    """Return arguments as others may see them: without join strings, nor user and password of a URL."""
    return [_shown(*each) for each in zip(arguments, ["", *arguments], strict=False)]


def _shown(argument: str, before: str) -> str:
    if before == "--join":
        return HIDDEN
    if argument.startswith("--join="):
        return f"--join={HIDDEN}"
    scheme, separator, rest = argument.partition("://")
    _, at, where = rest.rpartition("@")
    return f"{scheme}{separator}{HIDDEN}{at}{where}" if at else argument


def _hide_secrets() -> None:
    """Start anew with arguments that show no secret, if they do: all users can read them (proc_pid_cmdline(5))."""
    given = sys.argv[1:]
    visible = shown(given)
    kept = os.environ.get(ARGUMENTS)
    if kept is None and visible == given:
        return
    import json  # noqa: PLC0415 -- not needed otherwise, for now

    if kept is not None and shown(arguments := json.loads(kept)) == given:
        sys.argv[1:] = arguments
    elif visible != given:
        os.environ[ARGUMENTS] = json.dumps(given)
        interpreter = sys.orig_argv[: len(sys.orig_argv) - len(given)]
        with contextlib.suppress(OSError):  # there is no way back to the interpreter, so they stay visible
            os.execve(sys.executable, [*interpreter, *visible], os.environ)  # noqa: S606 -- itself


def _open_standard_streams() -> None:
    """Open closed standard streams (`>&-`) on /dev/null, so that no socket or file gets their descriptors."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened == descriptor:
                os.set_inheritable(opened, True)
            mode = "w" if descriptor else "r"
            setattr(sys, name, open(opened, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 -- to the end


if __name__ == "__main__":
    sys.exit(entry())
