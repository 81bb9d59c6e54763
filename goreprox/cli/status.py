"""The command `status`."""

from goreprox.cli.options import ALL, AskOptions, FileOptions
from goreprox.cli.report import show, show_json
from goreprox.cli.watch import clear, repeat
from goreprox.errors import ControlError
from goreprox.status.query import ask_all


def status(
    *,
    json: bool = False,
    verbose: bool = False,
    watch: bool = False,
    of: AskOptions = ALL,
    file: FileOptions | None = None,  # noqa: ARG001 - `Sources.read_file` has used it
) -> None:
    """Ask the processes of this machine for their status, and print it.

    Parameters
    ----------
    json
        Print a JSON array, one object per process, as docs/status.md describes.
    verbose
        Show everything, as tables, in the terms of docs/architecture.md.
    watch
        Show it again every 2 seconds, until Ctrl-C.
    """

    def frame() -> None:
        responses = ask_all(of.directories, role=of.role, name=of.name)
        if json:
            show_json(responses.documents, indent=None if watch else 2)
        else:
            if watch:
                clear()
            show(responses.documents, verbose=verbose)
        if responses.problems:
            raise ControlError("; ".join(responses.problems))

    if watch:
        repeat(frame)
    frame()
