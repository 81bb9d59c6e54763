"""Who may look at the page of a dashboard, and who may change something."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from brokers import Role
from goreprox.config.addresses import Address
from goreprox.config.dashboard import DashboardConfig, PageUrl
from goreprox.control.message import Request
from goreprox.control.socket import ControlSocket
from goreprox.errors import ConfigError
from goreprox.keys.state import StateDir
from goreprox.monitor import page as module
from goreprox.monitor.dashboard import Dashboard
from goreprox.monitor.page import FIELD, STATIC
from goreprox.monitor.sessions import INVITATION_S, INVITATIONS, SESSION_S, SESSIONS, Sessions
from tests.support.sockets import HOST
from tests.support.tls import Authority
from tests.support.waiting import DEADLINE_S

LOOPBACK = Address(HOST, 0)
DATA = (
    ("DELETE", "/api/session"),
    ("GET", "/api/live"),
    ("GET", "/api/streams"),
    ("POST", "/api/streams/end"),
    ("GET", "/api/keys"),
    ("GET", "/api/options"),
    ("GET", "/api/requests"),
    ("GET", "/api/requests/detail"),
    ("POST", "/api/requests/replay"),
)
WRONG: tuple[object, ...] = ({}, {"ids": []}, {"ids": "abc"}, {"ids": [1]}, [], {"service": "web"})
TOKEN = "0123456789abcdef"


class Client(NamedTuple):
    """A browser at a dashboard."""

    http: httpx.AsyncClient
    origin: str

    @property
    def fields(self) -> dict[str, str]:
        return {"Origin": self.origin}

    async def send(self, method: str, path: str, *, body: object = None, **fields: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in fields.items()}
        headers = self.fields | named
        return await self.http.request(method, self.origin + path, headers=headers, json=body)

    async def sign_in(self, secret: str, **fields: str) -> httpx.Response:
        return await self.send("POST", "/api/session", body={"secret": secret}, **fields)

    async def session(self, made: Dashboard) -> dict[str, str]:
        """Begin one; return the field that requests have from then on."""
        response = await self.sign_in(made.invitation().partition("#")[2])
        assert response.status_code == 200
        return {FIELD: response.json()["token"]}


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as client:
        yield client


class Running(NamedTuple):
    made: Dashboard
    client: Client


@pytest.fixture
async def running(tmp_path: Path, http: httpx.AsyncClient) -> AsyncIterator[Running]:
    made = Dashboard(DashboardConfig(directory=tmp_path, listen=LOOPBACK))
    async with made.at(LOOPBACK) as port:
        yield Running(made, Client(http, f"http://{HOST}:{port}"))


async def test_data_needs_the_cookie_and_the_token_of_one_session(running: Running) -> None:
    made, client = running
    token = await client.session(made)
    assert (await client.send("GET", "/api/streams", **token)).status_code == 200
    cookies = dict(client.http.cookies)
    other = await client.session(made)
    for cookie, fields in (({}, {}), (cookies, {}), ({}, token), (cookies, {FIELD: "wrong"}), (cookies, other)):
        client.http.cookies.clear()
        client.http.cookies.update(cookie)
        for method, path in DATA:
            response = await client.send(method, path, body={}, **fields)
            assert response.status_code == 401, (method, path)
            assert set(response.json()) == {"problem"}


async def test_every_route_but_files_and_sign_in_is_data(running: Running) -> None:
    made, _ = running
    files = {"/", *(f"/{path.relative_to(STATIC).as_posix()}" for path in STATIC.rglob("*") if path.is_file())}
    routes = {(route.method, route.path) for route in made.routes}
    programs = {("GET", path) for path in ("/metrics", "/live", "/ready")}
    assert routes == {*DATA, *programs, *(("GET", path) for path in files), ("POST", "/api/session")}


async def test_an_invitation_begins_one_session_and_an_older_one_none(running: Running) -> None:
    made, client = running
    secret = made.invitation().partition("#")[2]
    first = await client.sign_in(secret)
    assert first.status_code == 200
    again = await client.sign_in(secret)
    assert again.status_code == 401
    assert "Set-Cookie" not in again.headers
    for wrong in ("", "x", secret[:-1], None, 1, [secret]):
        assert (await client.send("POST", "/api/session", body={"secret": wrong})).status_code == 401
    form = await client.http.post(f"{client.origin}/api/session", data={"secret": "x"}, headers=client.fields)
    assert form.status_code == 401


async def test_a_cookie_is_for_this_dashboard_alone_and_no_script(running: Running) -> None:
    made, client = running
    response = await client.sign_in(made.invitation().partition("#")[2])
    name, _, rest = response.headers["Set-Cookie"].partition("=")
    assert name == f"goreprox-dashboard-{made.port}"
    attributes = {part.strip() for part in rest.split(";")[1:]}
    assert attributes == {"HttpOnly", "SameSite=Strict", "Path=/", f"Max-Age={SESSION_S:.0f}"}
    assert response.json()["token"] not in response.headers["Set-Cookie"]


async def test_signing_out_ends_the_session_for_whoever_has_copied_it(running: Running) -> None:
    made, client = running
    token = await client.session(made)
    copied = dict(client.http.cookies)
    assert (await client.send("DELETE", "/api/session", **token)).status_code == 200
    assert not client.http.cookies
    client.http.cookies.update(copied)
    assert (await client.send("GET", "/api/streams", **token)).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "a@localhost"])
async def test_a_name_that_was_made_to_lead_here_gets_nothing(running: Running, host: str) -> None:
    made, client = running
    token = await client.session(made)
    for path in ("/", "/app.js", "/api/streams"):
        assert (await client.send("GET", path, Host=host, **token)).status_code == 421
    assert (await client.sign_in(made.invitation().partition("#")[2], Host=host)).status_code == 421


@pytest.mark.parametrize(
    "fields",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://{here}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
async def test_requests_that_another_site_has_a_browser_send_are_refused(
    running: Running, fields: dict[str, str]
) -> None:
    made, client = running
    token = await client.session(made)
    sent = {name: value.format(here=client.origin.partition("//")[2]) for name, value in fields.items()} | token
    for method, path in DATA:
        assert (await client.send(method, path, body={}, **sent)).status_code == 403
    assert (await client.sign_in(made.invitation().partition("#")[2], **sent)).status_code == 403


async def test_what_changes_something_has_to_show_its_origin(running: Running) -> None:
    made, client = running
    token = await client.session(made)
    for method, path in DATA:
        if method == "GET":
            continue
        response = await client.http.request(method, client.origin + path, headers=dict(token), json={"ids": ["1"]})
        assert response.status_code == 403
    secret = {"secret": made.invitation().partition("#")[2]}
    assert (await client.http.post(f"{client.origin}/api/session", json=secret)).status_code == 403
    reading = await client.http.get(f"{client.origin}/api/streams", headers=dict(token))
    assert reading.status_code == 200


async def test_every_response_forbids_what_the_page_does_not_need(running: Running) -> None:
    made, client = running
    token = await client.session(made)
    for path in ("/", "/app.js", "/style.css", "/icon.svg", "/missing", "/api/streams", "/metrics", "/live"):
        fields = (await client.send("GET", path, **token)).headers
        policy = fields["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert fields["X-Content-Type-Options"] == "nosniff"
        assert fields["Cache-Control"] == "no-store"
        assert fields["Referrer-Policy"] == "no-referrer"
        assert fields["Server"] == "goreprox"
    assert "style=" not in (STATIC / "index.html").read_text()
    assert "<script>" not in (STATIC / "index.html").read_text()


async def test_only_a_dashboard_that_may_ends_streams(tmp_path: Path, http: httpx.AsyncClient) -> None:
    asked: list[object] = []

    async def end(request: Request) -> object:
        asked.append(request.options["ids"])
        return {"ended": 1, "ids": request.options["ids"]}

    control = await ControlSocket.open(tmp_path / "server-t.0", {"end": end})
    for allow, status in ((False, 403), (True, 200)):
        made = Dashboard(DashboardConfig(directory=tmp_path, listen=LOOPBACK, allow_actions=allow))
        async with made.at(LOOPBACK) as port:
            client = Client(http, f"http://{HOST}:{port}")
            token = await client.session(made)
            for wrong in WRONG:
                refused = await client.send("POST", "/api/streams/end", body=wrong, **token)
                assert refused.status_code == (400 if allow else 403)
            response = await client.send("POST", "/api/streams/end", body={"ids": ["abc123-1"]}, **token)
            assert response.status_code == status
        assert asked == ([["abc123-1"]] if allow else [])
    control.close()


async def test_other_machines_get_the_page_by_https_only(tmp_path: Path, http: httpx.AsyncClient) -> None:
    """An address that is no loopback one is that of another machine to the server: it looks at where they connect."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    made = Dashboard(DashboardConfig(directory=tmp_path, listen=Address("0.0.0.0", 0), token_file=token))
    async with made.at(Address("0.0.0.0", 0)) as port:
        client = Client(http, f"http://{outward()}:{port}")
        for method, path in (*DATA, ("GET", "/"), ("POST", "/api/session")):
            refused = await client.send(method, path, body={"secret": TOKEN})
            assert refused.status_code == 403, path
            assert "https only" in refused.text
        metrics = await client.send("GET", "/metrics", Authorization=f"Bearer {TOKEN}")
        assert metrics.status_code == 200
        assert (await Client(http, f"http://{HOST}:{port}").sign_in(TOKEN)).status_code == 200


def outward() -> str:
    """Return an address of this machine that is no loopback one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        address = probe.getsockname()[0]
    assert isinstance(address, str)
    return address


async def test_by_https_the_cookie_is_for_https_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    cert, key = authority.cert, authority.key
    made = Dashboard(DashboardConfig(directory=tmp_path, listen=LOOPBACK, token_file=token, tls_cert=cert, tls_key=key))
    async with (
        made.at(LOOPBACK) as port,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S, verify=authority.trusting()) as http,
    ):
        client = Client(http, f"https://{HOST}:{port}")
        assert made.invitation().startswith(f"{client.origin}/#")
        assert (await client.sign_in("x" * 16)).status_code == 401
        response = await client.sign_in(TOKEN)
        assert response.headers["Set-Cookie"].startswith(f"__Host-goreprox-dashboard-{port}=")
        assert "; Secure" in response.headers["Set-Cookie"]
        assert (await client.send("GET", "/api/streams", **{FIELD: response.json()["token"]})).status_code == 200


async def test_behind_a_proxy_with_tls_the_url_is_the_origin(tmp_path: Path, http: httpx.AsyncClient) -> None:
    url = PageUrl.parse("https://tunnel.example.org/")
    made = Dashboard(DashboardConfig(directory=tmp_path, listen=LOOPBACK, url=url))
    async with made.at(LOOPBACK) as port:
        client = Client(http, f"http://{HOST}:{port}")
        invitation = made.invitation()
        assert invitation.startswith("https://tunnel.example.org/#")
        fields = {"Host": "tunnel.example.org", "Origin": "https://tunnel.example.org"}
        response = await client.sign_in(invitation.partition("#")[2], **fields)
        assert response.status_code == 200
        assert "; Secure" in response.headers["Set-Cookie"]


@pytest.mark.parametrize("text", ["", "tunnel.example.org", "ftp://a", "https://a/path", "https://a b", "https://@a"])
def test_an_url_that_is_no_place_for_the_page_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected where browsers find the page"):
        PageUrl.parse(text)


async def test_pages_are_told_what_happens_and_only_so_many(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VIEWERS", 1)
    made, client = running
    headers = {**await client.session(made), "Origin": client.origin}
    async with client.http.stream("GET", f"{client.origin}/api/live", headers=headers) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        lines = response.aiter_lines()
        assert await anext(lines) == "event: hello"
        assert json.loads((await anext(lines)).removeprefix("data: ")) == {"allow_actions": False, "history": {}}
        full = await client.send("GET", "/api/live", **{FIELD: headers[FIELD]})
        assert full.status_code == 503
        assert "close one of them" in full.text
    async with asyncio.timeout(DEADLINE_S):
        while True:  # the first is gone as soon as something cannot be sent to it
            async with client.http.stream("GET", f"{client.origin}/api/live", headers=headers) as response:
                if response.status_code == 200:
                    break


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_invitation_and_a_session_end_in_time() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    late, early = sessions.invite(), sessions.invite()
    clock.now += INVITATION_S - 1
    session = sessions.accept(early)
    assert session is not None
    clock.now += 1
    assert sessions.accept(late) is None
    clock.now += SESSION_S - 2
    assert sessions.are_valid(session.cookie, session.token)
    clock.now += 2
    assert not sessions.are_valid(session.cookie, session.token)


def test_there_are_only_so_many_invitations_and_sessions_the_oldest_of_which_ends() -> None:
    sessions = Sessions(Clock())
    invitations = [sessions.invite() for _ in range(INVITATIONS + 1)]
    assert sessions.accept(invitations[0]) is None
    first = sessions.accept(invitations[1])
    assert first is not None
    more = [sessions.begin() for _ in range(SESSIONS)]
    assert not sessions.are_valid(first.cookie, first.token)
    assert all(sessions.are_valid(*each) for each in more)
    assert not sessions.are_valid("", "")


async def test_keys_and_tokens_are_those_of_the_files_that_options_name(running: Running, tmp_path: Path) -> None:
    made, client = running
    StateDir(tmp_path / "state").add(Role.PROVIDER, "laptop", ["web"], [Address("tunnel.example.org", 1)])
    tokens = tmp_path / "tokens.toml"
    digest = "0" * 63 + "1"
    tokens.write_text(
        f'[tokens.partner]\nsha256 = "{digest}"\nexpires = 2030-01-02T03:04:05Z\nservices = ["api"]\n'
        f'[tokens.ours]\nsha256 = "{digest[::-1]}"\n'
    )
    values = {"state-dir": str(tmp_path / "state"), "providers": "9887", "auth-tokens": str(tokens)}

    async def options(_: Request) -> object:
        return [{"role": "server", "option": name, "values": [value], "source": ""} for name, value in values.items()]

    control = await ControlSocket.open(tmp_path / "server-t.0", {"options": options})
    session = await client.session(made)
    found = (await client.send("GET", "/api/keys", **session)).json()
    assert found["problems"] == []
    key, token, other = found["accepted"]
    assert key == {
        "who": "server-t.0",
        "kind": "key of a provider",
        "name": "laptop",
        "services": ["web"],
        "expires_at": None,
    }
    assert token == {
        "who": "server-t.0",
        "kind": "token",
        "name": "partner",
        "services": ["api"],
        "expires_at": 1893553445.0,
    }
    assert (other["name"], other["services"], other["expires_at"]) == ("ours", None, None)
    assert digest not in json.dumps(found)
    tokens.unlink()
    again = (await client.send("GET", "/api/keys", **session)).json()
    assert again["accepted"] == [key]
    assert "tokens.toml: No such file" in again["problems"][0]
    control.close()
