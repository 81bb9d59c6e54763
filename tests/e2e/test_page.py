"""The page of the dashboard, in Chromium, over real processes: what it shows, and when."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from goreprox.control.message import Request
from goreprox.control.socket import ControlSocket
from tests.e2e.roles import ANY, echoed, start_broker, start_edge, start_provider
from tests.e2e.upgrading import run, upgraded
from tests.support.browser import Look, chromium, dashboard, looking
from tests.support.processes import nothing_yet, tunnel
from tests.support.sockets import HOST
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S

pytestmark = pytest.mark.programs
VIEWS = ("Overview", "Streams", "Requests", "Outages", "Recent ends", "Certificates", "Configuration")


@pytest.mark.long
async def test_every_view_shows_a_cluster_to_everybody(tmp: Path) -> None:
    """In light and dark, in a wide window and on a phone, without a fault that axe-core calls serious."""
    async with nothing_yet(tmp) as made, chromium() as browser:
        target = await made.target(echo)
        brokers = [await start_broker(made) for _ in range(2)]
        edge = await start_edge(made, *brokers, listen=f"{ANY}=web", args=("--name", "tunnel"))
        await start_provider(made, *brokers, target=f"web={target}", args=("--name", "laptop", "--check", "tcp"))
        client = await made.connect(await edge.port("clients"))
        await echoed(client, b"before")
        other = await made.connect(await edge.port("clients"))
        await echoed(other, b"other")
        other[1].close()
        async with dashboard(tmp / "run") as served:
            async with looking(browser, served) as look:
                await look.row("Processes", "edge-tunnel.0", "ready").wait_for()
                await look.row("Paths", "edge-tunnel.0", "provider laptop", "in use", "ms").wait_for()
                await look.row("Paths", "edge-tunnel.0", "provider laptop", "standing by").wait_for()
                await look.row(
                    "Services and where clients find them", "web", str(await edge.port("clients"))
                ).wait_for()
                await look.row("Targets", f"{HOST}:{target}", "well", "tcp").wait_for()
                await look.page.get_by_role(
                    "img", name=re.compile("4 processes; .* 2 in use, 2 standing by")
                ).wait_for()
                await look.page.get_by_role("img", name=re.compile("^Throughput of the last hour")).wait_for()
                await look.view("Streams")
                await look.row("Open connections", "edge-tunnel.0", "web", "laptop", "6 B").wait_for()
                await look.view("Recent ends")
                await look.row("Connections that ended last", "edge-tunnel.0", "web", "laptop", "done").wait_for()
                await look.view("Configuration")
                await look.row("Options", "provider-laptop.0", "tcp", "flag --check").wait_for()
                assert not await look.row("Options", "grace").count()
                await look.page.get_by_label("Defaults, too").press("Space")
                await look.row("Options", "provider-laptop.0", "grace", "default").wait_for()
                await _accessible(look)
            async with looking(browser, served, scheme="dark", size=(360, 740)) as phone:
                background = await phone.page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert background == "rgb(14, 17, 22)"
                await _accessible(phone)


async def _accessible(look: Look) -> None:
    for title in VIEWS:
        await look.view(title)
        assert await look.inaccessible() == [], title
        assert await look.overflow_px() == 0, title


@pytest.mark.long
async def test_an_outage_its_resume_and_an_upgrade_are_seen_as_they_happen(tmp: Path) -> None:
    async with nothing_yet(tmp) as made, chromium() as browser, dashboard(tmp / "run") as served:
        await run(made, echo)
        client = await made.connect()
        await echoed(client, b"before")
        async with looking(browser, served) as look:
            await look.row("Processes", "server", "ready").wait_for()
            await look.view("Outages")
            lasting = look.row("Outages", "server-", "lasts")
            over = look.row("Outages", "server-", " B")
            port = made.relay.port
            await made.relay.stop()
            await lasting.wait_for()
            await made.relay.start(port)
            await echoed(client, b"after")
            await over.wait_for()
            await lasting.wait_for(state="detached")
            await upgraded(tmp, 1)
            await look.row("What has happened", "provider-", "upgraded from").wait_for()
            await echoed(client, b"again")
            await look.view("Overview")
            made.provider.signal(signal.SIGKILL)
            await look.row("Processes", "provider-").wait_for(state="detached")
            await look.view("Outages")
            await look.row("What has happened", "provider-", "the process has ended").wait_for()


@pytest.mark.long
async def test_a_connection_is_found_and_ended_by_keyboard_where_that_is_allowed(tmp: Path) -> None:
    async with tunnel(tmp, echo) as made, chromium() as browser:
        clients = [await made.connect() for _ in range(3)]
        for client in clients:
            await echoed(client, b"hello")
        doomed = clients[1]
        host, port = doomed[1].get_extra_info("sockname")
        async with dashboard(tmp / "run") as reading, looking(browser, reading) as look:
            await look.view("Streams")
            await look.row("Open connections", f"{host}:{port}").first.wait_for()
            assert await look.page.get_by_role("button", name=re.compile("^End ")).count() == 0
        async with dashboard(tmp / "run", allow_actions=True) as served, looking(browser, served) as look:
            keyboard = look.page.keyboard
            await keyboard.press("Tab")
            await keyboard.press("Enter")  # skip to the content
            assert await look.page.evaluate("document.activeElement.id") == "main"
            await look.page.get_by_role("link", name="Streams").focus()
            await keyboard.press("Enter")
            rows = look.page.get_by_role("region", name="Open connections").locator("tbody tr")
            await rows.nth(5).wait_for()  # each is listed at both ends
            await look.page.get_by_label("Filter").focus()
            await keyboard.type(f"client:{host}/32 {host}:{port} server")
            await look.page.get_by_text("1 shown", exact=True).wait_for()
            button = rows.get_by_role("button")
            await button.focus()
            await keyboard.press("Enter")
            await look.page.get_by_text(f"End the connection of {host}:{port}").wait_for()
            assert await look.page.evaluate("document.activeElement.textContent") == "Keep it"
            await keyboard.press("Enter")
            await echoed(doomed, b"still there")
            await button.focus()
            await keyboard.press("Enter")
            await keyboard.press("Shift+Tab")
            await keyboard.press("Enter")
            await look.page.get_by_text("0 shown", exact=True).wait_for()
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(doomed[0].read(), DEADLINE_S)
            await look.page.get_by_label("Filter").fill("")
            await look.page.get_by_text("4 shown", exact=True).wait_for()
            await look.page.get_by_role("button", name="client", exact=True).press("Enter")
            assert await look.page.get_by_role("columnheader", name="client").get_attribute("aria-sort") == "ascending"
            shown = await rows.locator("td:nth-child(4)").all_text_contents()
            assert shown == sorted(shown)


HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture
async def hostile(tmp: Path) -> AsyncIterator[Path]:
    """A runtime directory with a provider whose texts are what an attacker would like others to see."""

    async def ready(_: Request) -> object:
        return {"pid": 1, "ready": False, "reason": HOSTILE, "missing": [HOSTILE]}

    async def status(_: Request) -> object:
        numbers = dict.fromkeys(("open", "limit", "total", "waiting_clients", "refused_clients", "dialing"), 1)
        sizes = dict.fromkeys(("sent_bytes", "received_bytes", "borrowed_bytes", "lendable_bytes"), 1)
        path = {"label": HOSTILE, "in_use": True, "fabric_epoch": 1, "round_trip_s": 0.1}
        peer = {"name": HOSTILE, "role": "edge", "incarnation": HOSTILE, "state": HOSTILE, "paths": [path]}
        end = {"ended_at": "2026-01-02T03:04:05+00:00", "client": HOSTILE, "service": HOSTILE, "peer": HOSTILE}
        return {
            "format": 1,
            "version": HOSTILE,
            "role": "provider",
            "name": HOSTILE,
            "incarnation": "1",
            "pid": 1,
            "up_s": 1,
            "draining": False,
            "ports": {},
            "broker": None,
            "services": {HOSTILE: [HOSTILE]},
            "streams": numbers | sizes,
            "peers": [{**peer, "services": [HOSTILE], "outages": 1, "process": HOSTILE, "machine": HOSTILE}],
            "links": [{"label": HOSTILE, "state": HOSTILE, "since_s": 1.0, "problem": HOSTILE, "proxy": HOSTILE}],
            "ends": [{**end, "sent_bytes": 1, "received_bytes": 1, "reason": HOSTILE, "code": HOSTILE}],
            "certificates": [{"option": HOSTILE, "file": HOSTILE, "expires_at": 1.0}],
            "acme": {HOSTILE: {"expires_at": None, "next_at": None, "problem": HOSTILE}},
            "checks": {HOSTILE: {"check": HOSTILE, "condition": HOSTILE, "since_s": 1, "problem": HOSTILE}},
        }

    async def events(_: Request) -> AsyncIterator[object]:
        told = {"at": "2026-01-02T03:04:05+00:00", "event": "peer_down", "message": HOSTILE, "peer": HOSTILE}
        yield {"after": "1-1", "missed": 0, "events": [{**told, "reason": HOSTILE, "streams": 1}]}
        await asyncio.get_running_loop().create_future()

    async def streams(_: Request) -> AsyncIterator[object]:
        numbers = {"open_s": 1.0, "sent_bytes": 1, "received_bytes": 1, "outages": 1}
        texts = dict.fromkeys(("id", "client", "service", "peer", "state", "target", "host"), HOSTILE)
        yield {"at_s": 1.0, "streams": [texts | numbers]}

    async def options(_: Request) -> object:
        return [{"role": HOSTILE, "option": HOSTILE, "values": [HOSTILE], "source": HOSTILE}]

    (tmp / "run").mkdir(mode=0o700)
    commands = {"ready": ready, "status": status, "events": events, "streams": streams, "options": options}
    control = await ControlSocket.open(tmp / "run/provider-t.0", commands)  # type: ignore[arg-type] # pages are dicts
    yield tmp / "run"
    control.close()


@pytest.mark.long
async def test_what_comes_from_the_network_stays_text(hostile: Path) -> None:
    async with (
        chromium() as browser,
        dashboard(hostile, allow_actions=True) as served,
        looking(browser, served) as look,
    ):
        for title in VIEWS:
            if title == "Requests":
                continue  # an edge's
            await look.view(title)
            await look.sees(HOSTILE)
            assert await look.page.title() == f"{title} – Goreprox"
            assert await look.page.locator("main img, main script").count() == 0


async def test_an_invitation_is_used_once_and_a_session_ends_by_signing_out(tmp: Path) -> None:
    async with chromium() as browser, dashboard(tmp) as served, looking(browser, served) as look:
        assert "#" not in look.page.url
        await look.page.reload()
        await look.page.get_by_role("heading", name="Overview").wait_for()
        await look.page.get_by_role("button", name="Sign out").click()
        await look.page.get_by_role("heading", name="Sign in").wait_for()
        assert await look.inaccessible() == []
        secret = look.page.get_by_label("URL or token")
        await secret.fill("wrong")
        await secret.press("Enter")
        await look.page.get_by_role("alert").get_by_text("it was used, or is too old or wrong").wait_for()
        assert [each for each in look.problems if "401" not in each] == []  # Chromium logs each such response
        look.problems.clear()
        await secret.fill(served.invitation())
        await secret.press("Enter")
        await look.page.get_by_role("status").get_by_text("live").wait_for()


@pytest.mark.long
async def test_a_page_says_when_its_dashboard_has_ended_and_asks_for_a_new_session_after_a_restart(tmp: Path) -> None:
    async with chromium() as browser:
        context = await browser.new_context()
        page = await context.new_page()
        page.set_default_timeout(DEADLINE_S * 1000)
        async with dashboard(tmp) as first:
            await page.goto(first.invitation())
            await page.get_by_role("status").get_by_text("live").wait_for()
        await page.get_by_role("status").get_by_text("reconnecting").wait_for()
        async with dashboard(tmp, port=first.port):
            await page.get_by_role("heading", name="Sign in").wait_for()
