"""Who may look at the page: browsers that have shown an invitation, each known by a cookie and a token of its page.

Browsers send a cookie to every port of a host, so to programs of other users of this machine, too. So the cookie alone
opens nothing: each request for data has the token as well, which the page keeps where only its own origin finds it.
Both are random, and in memory alone: they end with the process, so a program that takes its port then gains nothing.
"""

import hmac
import secrets
from collections.abc import Callable
from typing import Final, NamedTuple

SESSION_S: Final = 12 * 3600.0
"""How long a browser may look, from its invitation on."""
SESSIONS: Final = 64
"""At a time; a further one ends the oldest. Each takes 0.5 KiB."""
INVITATION_S: Final = 600.0
"""How long an invitation is valid, which is used once."""
INVITATIONS: Final = 16
"""At a time; a further one ends the oldest."""
SECRET_BYTES: Final = 32


class Session(NamedTuple):
    """One browser."""

    cookie: str
    token: str


class Sessions:
    """Those of one dashboard."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._invitations: dict[str, float] = {}
        self._sessions: dict[str, tuple[str, float]] = {}
        """Tokens, and when they end, by cookie."""

    def invite(self) -> str:
        """Return a secret that begins one session."""
        invitation = secrets.token_urlsafe(SECRET_BYTES)
        _make_room(self._invitations, INVITATIONS)
        self._invitations[invitation] = self._clock() + INVITATION_S
        return invitation

    def accept(self, invitation: str) -> Session | None:
        """Begin a session; None if the invitation is unknown, was used, or is too old."""
        until = self._invitations.pop(invitation, 0.0)
        return self.begin() if self._clock() < until else None

    def begin(self) -> Session:
        """Begin a session of one who has shown another secret."""
        session = Session(secrets.token_urlsafe(SECRET_BYTES), secrets.token_urlsafe(SECRET_BYTES))
        _make_room(self._sessions, SESSIONS)
        self._sessions[session.cookie] = session.token, self._clock() + SESSION_S
        return session

    def are_valid(self, cookie: str, token: str) -> bool:
        """Return whether a request with these two is from one who may look."""
        known, until = self._sessions.get(cookie, ("", 0.0))
        return hmac.compare_digest(known.encode(), token.encode()) and self._clock() < until

    def end(self, cookie: str) -> None:
        """End a session."""
        self._sessions.pop(cookie, None)


def _make_room(kept: dict[str, object] | dict[str, float] | dict[str, tuple[str, float]], most: int) -> None:
    while len(kept) >= most:
        del kept[next(iter(kept))]
