"""Whether processes are alive and ready, in the two words that programs ask for: /live and /ready."""

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple

from goreprox.control.client import ROLES, Reply, ask
from goreprox.monitor.responder import Request, Response

VERBOSE: Final = "verbose"


class Report(NamedTuple):
    """Whether a process is ready."""

    reason: str | None
    """Why it is not; None if it is."""
    missing: list[str]
    """Services without a provider. Their clients wait, so the process is ready nevertheless."""

    def encoded(self) -> dict[str, object]:
        """Return it as a JSON object."""
        return {"ready": self.reason is None, "reason": self.reason, "missing": self.missing}


class Answer(NamedTuple):
    """What a process says of itself, or why it says nothing."""

    who: str
    """Its role, name and slot."""
    pid: int | None
    report: Report


async def ask_ready(
    directories: Sequence[Path], *, roles: Sequence[str] = ROLES, name: str | None = None
) -> list[Answer]:
    """Ask the processes of these roles, and of that name if any, whether they are ready; none if there are none.

    Raises:
        ControlError: this user may not look into a directory.
    """
    return [_answer(reply) for reply in await ask(directories, "ready", roles=roles, name=name)]


def _answer(reply: Reply) -> Answer:
    match reply.result:
        case {"pid": int(pid), "reason": None | str() as reason, "missing": list(missing)}:
            return Answer(reply.who, pid, Report(reason, list(map(str, missing))))
    return Answer(reply.who, None, Report(reply.problem or f"{reply.who} does not know whether it is ready", []))


async def _live() -> bool:
    return True


async def probe(
    request: Request, judge: Callable[[], Awaitable[Report]], is_live: Callable[[], Awaitable[bool]] = _live
) -> Response | None:
    """Respond to a request for /live or /ready; None if it is for something else."""
    if request.path == "/live":
        if await is_live():
            return Response(HTTPStatus.OK, "live\n")
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, "not live\n")
    if request.path != "/ready":
        return None
    report = await judge()
    lines = ["ready" if report.reason is None else "not ready"]
    if request.query == VERBOSE:
        lines += [] if report.reason is None else [f"reason: {report.reason}"]
        lines += [f"no provider: {service}" for service in report.missing]
    status = HTTPStatus.OK if report.reason is None else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(status, "\n".join([*lines, ""]))
