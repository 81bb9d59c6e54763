"""When to ask for which certificate. Pure: time is an argument, in seconds since 1970."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Final, NamedTuple, Self

RETRY_MIN_S: Final = 60.0
RETRY_FACTOR: Final = 4
RETRY_MAX_S: Final = 6 * 3600.0
"""Pauses between failures of a host: 1, 4, 16 and 64 min, 4.3 h, then 6 h. So there are 4 attempts in the first hour;
Let's Encrypt allows 5 failures of a host in an hour."""
LIMITED_S: Final = 3600.0
"""Pause after the authority has said that there were too many requests, unless it says how long. After more, only the
host waits as long as it says, and all others for this time."""
RETRY_AFTER_MAX_S: Final = 7 * 86_400.0
WEEK_S: Final = 7 * 86_400.0
FORGET_S: Final = 30 * 86_400.0
"""How long after its last date a host is remembered, which nobody may want any more."""
RENEW_SHARE: Final = 1 / 3
"""The part of its life that a certificate has left when it is renewed: 30 days of 90."""


class Wanted(NamedTuple):
    """A host that needs a certificate."""

    host: str
    owner: str | None = None
    """Whose budget it counts for, as a published name; None: it is configured."""


class Choice(NamedTuple):
    """What is to be asked for next, and when; nothing at infinity."""

    at: float
    wanted: Wanted | None


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a host."""

    issued_at: float = 0.0
    """Of the present certificate; 0: there is none."""
    expires_at: float = 0.0
    failures: int = 0
    """In a row."""
    retry_at: float = 0.0
    problem: str = ""
    """Of the last attempt, with the next step."""

    @property
    def renew_at(self) -> float:
        """When to ask for the next certificate."""
        return self.expires_at - (self.expires_at - self.issued_at) * RENEW_SHARE

    def failed(self, problem: str, *, now: float, retry_after_s: float = 0.0) -> "Record":
        """Return the record after a failure; the authority may have said after what time to retry."""
        pause_s = min(RETRY_MIN_S * RETRY_FACTOR ** min(self.failures, 10), RETRY_MAX_S)
        pause_s = max(pause_s, min(retry_after_s, RETRY_AFTER_MAX_S))
        return replace(self, failures=self.failures + 1, retry_at=now + pause_s, problem=problem)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the processes of a machine know of their hosts. Changes return another one."""

    hosts: Mapping[str, Record] = field(default_factory=dict)
    asked: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By owner: the published hosts that were asked for the first time in this week, and when."""
    paused_until: float = 0.0
    """Until then the authority wants no order."""

    # In a file.

    @property
    def text(self) -> str:
        """How it is kept: JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `text` was.

        Raises:
            ValueError: it is malformed.
        """
        try:
            document = json.loads(text)
            return cls(
                {str(host): Record(**record) for host, record in document["hosts"].items()},
                {
                    str(owner): {str(host): float(at) for host, at in hosts.items()}
                    for owner, hosts in document["asked"].items()
                },
                float(document["paused_until"]),
            )
        except (TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise ValueError(f"expected hosts, asked and paused_until ({exc})") from exc

    # What happens.

    def begun(self, wanted: Wanted, *, now: float) -> "Ledger":
        """Note that a certificate is asked for, which counts even if this process dies; forget what is long over."""
        hosts = {
            host: record
            for host, record in self.hosts.items()
            if max(record.expires_at, record.retry_at) > now - FORGET_S
        }
        asked = {
            owner: kept
            for owner, times in self.asked.items()
            if (kept := {host: at for host, at in times.items() if now - WEEK_S < at <= now})
        }
        if wanted.owner is not None and wanted.host not in self._asked(wanted.owner, now):
            asked[wanted.owner] = asked.get(wanted.owner, {}) | {wanted.host: now}
        return replace(self, hosts=hosts, asked=asked)

    def succeeded(self, host: str, *, now: float, issued_at: float, expires_at: float) -> "Ledger":
        """Note that there is a new certificate. While the clock is wrong there is one each third of a life at most."""
        record = Record(issued_at, expires_at, retry_at=now + (expires_at - issued_at) * RENEW_SHARE)
        return replace(self, hosts={**self.hosts, host: record})

    def failed(
        self, host: str, problem: str, *, now: float, retry_after_s: float = 0.0, limited: bool = False
    ) -> "Ledger":
        """Note a failure. After the limit of a rate all hosts wait."""
        if limited:
            retry_after_s = retry_after_s or LIMITED_S
        record = self.hosts.get(host, Record()).failed(problem, now=now, retry_after_s=retry_after_s)
        paused_until = now + min(retry_after_s, LIMITED_S) if limited else self.paused_until
        return replace(self, hosts={**self.hosts, host: record}, paused_until=max(paused_until, self.paused_until))

    # What is next.

    def choose(self, wanted: Iterable[Wanted], *, has: Callable[[str], bool], budget: int, now: float) -> Choice:
        """Return what to ask for next. `has` says whether there is a certificate of a host, be it an old one."""
        dues = ((self.due_at(each, has=has(each.host), budget=budget, now=now), each) for each in wanted)
        at, first = min(
            ((at, each) for at, each in dues if at < math.inf),
            key=lambda due: (due[0], due[1].owner is not None, due[1].host),
            default=(math.inf, None),
        )
        return Choice(at, first)

    def due_at(self, wanted: Wanted, *, has: bool, budget: int, now: float) -> float:
        """Return when to ask for a host."""
        record = self.hosts.get(wanted.host, Record())
        if has:
            return max(record.retry_at, record.renew_at, self.paused_until)
        at = max(record.retry_at if record.failures else 0.0, self.paused_until)
        return at if wanted.owner is None else max(at, self.affordable_at(wanted.owner, wanted.host, budget, now))

    def affordable_at(self, owner: str, host: str, budget: int, now: float) -> float:
        """Return when the budget of an owner has room for a new host; 0: it has, or the host counts already."""
        asked = self._asked(owner, now)
        if host in asked or len(asked) < budget:
            return 0.0
        return sorted(asked.values())[len(asked) - budget] + WEEK_S if budget else math.inf

    def _asked(self, owner: str, now: float) -> dict[str, float]:
        """Return what an owner has asked for within a week; a clock that was set back frees no budget for longer."""
        return {host: at for host, at in self.asked.get(owner, {}).items() if now - WEEK_S < at <= now}
