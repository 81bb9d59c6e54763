"""The page for people: its files, who may look at it, what it shows as it changes, and what it may change.

A view of the page is a module in `static/`, and has its data from a route here: `_routes` lists them all.
"""

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from goreprox.config.dashboard import DashboardConfig
from goreprox.errors import ControlError
from goreprox.monitor.collector import Collector
from goreprox.monitor.guard import Guard, Hosts, Origins
from goreprox.monitor.keys import accepted_by
from goreprox.monitor.live import live
from goreprox.monitor.options import options_of
from goreprox.monitor.requests import Requests
from goreprox.monitor.sessions import SESSION_S, Session, Sessions
from goreprox.monitor.streams import Streams
from goreprox.monitor.web import Handler, text

STATIC: Final = Path(__file__).with_name("static")
KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FIELD: Final = "X-Goreprox-Token"
"""Has the token of a session, in each request for data."""
VIEWERS: Final = 16
"""Pages that are updated at a time."""
JSON: Final = "application/json"


class Page:
    """Serves the page of one dashboard."""

    def __init__(
        self, config: DashboardConfig, sessions: Sessions, guard: Guard, collector: Collector, *, port: int
    ) -> None:
        self._config = config
        self._sessions = sessions
        self._guard = guard
        self._collector = collector
        self._hosts = Hosts(config)
        self._origins = Origins(config)
        self._streams = Streams(config.directory)
        self._requests = Requests(config.directory)
        self._cookie = f"goreprox-dashboard-{port}"
        self._viewers: set[asyncio.Task[Any]] = set()
        self.keep: Callable[[web.BaseRequest], None] = lambda _: None
        """Keeps the connection of a viewer; to be set before."""

    @property
    def routes(self) -> list[web.RouteDef]:
        """The files, which have no secrets, and the data, which only those with a session get."""
        files = [web.get("/", self._file("index.html"))]
        names = [path.relative_to(STATIC).as_posix() for path in sorted(STATIC.rglob("*")) if path.suffix in KINDS]
        files += [web.get(f"/{name}", self._file(name)) for name in names]
        return [
            *files,
            web.post("/api/session", self._checked(self._begin)),
            web.delete("/api/session", self._checked(self._entitled(self._end))),
            web.get("/api/live", self._checked(self._entitled(self._live))),
            web.get("/api/streams", self._checked(self._entitled(self._list_streams))),
            web.post("/api/streams/end", self._checked(self._entitled(self._changing(self._end_streams)))),
            web.get("/api/keys", self._checked(self._entitled(self._list_keys))),
            web.get("/api/options", self._checked(self._entitled(self._list_options))),
            web.get("/api/requests", self._checked(self._entitled(self._list_requests))),
            web.get("/api/requests/detail", self._checked(self._entitled(self._show_request))),
            web.post("/api/requests/replay", self._checked(self._entitled(self._changing(self._replay_request)))),
        ]

    # Who may.

    def _checked(self, handler: Handler) -> Handler:
        """Let requests pass that no other site has sent, and that nobody can read or change on their way."""

        async def checked(request: web.Request) -> web.StreamResponse:
            if not self._hosts.has(request.headers.get("Host", "")):
                return _problem(HTTPStatus.MISDIRECTED_REQUEST, "the Host is another one; see --url")
            if not self._is_private(request):
                return _problem(HTTPStatus.FORBIDDEN, "the page is shown to other machines by https only: --tls-cert")
            if not self._origins.has(request.method, request.headers, scheme=request.scheme):
                return _problem(HTTPStatus.FORBIDDEN, "another site has sent this request")
            return await handler(request)

        return checked

    def _is_private(self, request: web.Request) -> bool:
        """Return whether a request came by TLS, or from this machine."""
        if request.secure:
            return True
        address = None if request.transport is None else request.transport.get_extra_info("sockname")
        return address is not None and ipaddress.ip_address(address[0].partition("%")[0]).is_loopback

    def _entitled(self, handler: Handler) -> Handler:
        """Let requests pass that have the cookie and the token of a session."""

        async def entitled(request: web.Request) -> web.StreamResponse:
            cookie = request.cookies.get(self._cookie_of(request), "")
            if not self._sessions.are_valid(cookie, request.headers.get(FIELD, "")):
                return _problem(HTTPStatus.UNAUTHORIZED, "sign in: `goreprox dashboard invite` prints a URL")
            return await handler(request)

        return entitled

    def _changing(self, handler: Handler) -> Handler:
        """Let requests pass if the page may change something."""

        async def changing(request: web.Request) -> web.StreamResponse:
            if not self._config.allow_actions:
                return _problem(HTTPStatus.FORBIDDEN, "this dashboard changes nothing: it runs without --allow-actions")
            return await handler(request)

        return changing

    # Sessions.

    def _is_secure(self, request: web.Request) -> bool:
        return request.secure or (self._config.url is not None and self._config.url.secure)

    def _cookie_of(self, request: web.Request) -> str:
        return f"__Host-{self._cookie}" if self._is_secure(request) else self._cookie

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        match await _body(request):
            case {"secret": str(secret)} if (session := self._accept(secret)) is not None:
                response = _json({"token": session.token, "actions": self._config.allow_actions})
                response.set_cookie(
                    self._cookie_of(request),
                    session.cookie,
                    max_age=int(SESSION_S),
                    httponly=True,
                    samesite="Strict",
                    secure=self._is_secure(request),
                )
                return response
        return _problem(
            HTTPStatus.UNAUTHORIZED, "it was used, or is too old or wrong; `goreprox dashboard invite` makes one"
        )

    def _accept(self, secret: str) -> Session | None:
        return self._sessions.begin() if self._guard.has_token(secret) else self._sessions.accept(secret)

    async def _end(self, request: web.Request) -> web.StreamResponse:
        name = self._cookie_of(request)
        self._sessions.end(request.cookies.get(name, ""))
        response = _json({})
        response.del_cookie(name, httponly=True, samesite="Strict", secure=self._is_secure(request))
        return response

    # What is shown, and changed.

    def _file(self, name: str) -> Handler:
        path = STATIC / name
        body, kind = path.read_text(encoding="utf-8"), KINDS[path.suffix]

        async def file(_: web.Request) -> web.StreamResponse:
            return text(HTTPStatus.OK, body, kind)

        return self._checked(file)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        if len(self._viewers) >= VIEWERS:
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{VIEWERS} other pages are open; close one of them")
        task = asyncio.current_task()
        assert task is not None
        self._viewers.add(task)
        self.keep(request)
        try:
            return await live(request, self._collector, allow_actions=self._config.allow_actions)
        finally:
            self._viewers.discard(task)

    async def _list_streams(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._streams.list(request.query))

    async def _end_streams(self, request: web.Request) -> web.StreamResponse:
        match await _body(request):
            case {"ids": [*ids]} if ids and all(isinstance(each, str) for each in ids):
                return _json(await self._streams.end(ids))
        return _problem(HTTPStatus.BAD_REQUEST, "expected a list of ids")

    async def _list_keys(self, _: web.Request) -> web.StreamResponse:
        return _json(await accepted_by([self._config.directory]))

    async def _list_options(self, _: web.Request) -> web.StreamResponse:
        found = await options_of([self._config.directory])
        return _json({"processes": found})

    async def _list_requests(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._requests.list(request.query.getall("after", [])))

    async def _show_request(self, request: web.Request) -> web.StreamResponse:
        with contextlib.suppress(ControlError):
            found = await self._requests.detail(request.query.get("id", ""))
            if found is not None:
                return _json(found)
        return _problem(HTTPStatus.NOT_FOUND, "the request is not kept any more")

    async def _replay_request(self, request: web.Request) -> web.StreamResponse:
        match await _body(request):
            case {"id": str(id_)}:
                try:
                    return _json(await self._requests.replay(id_))
                except ControlError as exc:
                    return _problem(HTTPStatus.CONFLICT, str(exc))
        return _problem(HTTPStatus.BAD_REQUEST, "expected the id of a request")

    def close(self) -> None:
        """Update no page any longer."""
        for viewer in list(self._viewers):
            viewer.cancel()


async def _body(request: web.Request) -> object:
    """Return the JSON that a request has; None if it has none."""
    if request.content_type != JSON:
        return None
    try:
        found: object = await request.json()
    except (ValueError, RecursionError):
        return None
    return found


def _json(found: Mapping[str, object]) -> web.Response:
    return text(HTTPStatus.OK, json.dumps(found), JSON)


def _problem(status: HTTPStatus, message: str) -> web.Response:
    return text(status, json.dumps({"problem": message}), JSON)
