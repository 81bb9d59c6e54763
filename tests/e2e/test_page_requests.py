"""The view of requests of the dashboard's page, in Chromium, over real processes."""

import asyncio
import json
import re
import shlex
from pathlib import Path

import pytest

from tests.support.browser import chromium, dashboard, looking
from tests.support.processes import nothing_yet
from tests.support.waiting import eventually
from tests.support.web import fetch, head_of

pytestmark = pytest.mark.programs
SECRET = "hidden-4711"


@pytest.mark.long
async def test_requests_are_found_shown_copied_downloaded_and_sent_once_more(tmp: Path) -> None:
    heads: list[str] = []

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await head_of(reader))
            text = json.dumps({"outer": {"password": SECRET, "page": 2}}).encode()
            fields = b"Content-Type: application/json\r\nContent-Length: %d" % len(text)
            writer.write(b"HTTP/1.1 %d Fine\r\n%b\r\n\r\n%b" % (404 if "/b" in heads[-1] else 200, fields, text))

    async with nothing_yet(tmp) as made, chromium() as browser:
        made.scheme = "http"
        await made.target(target)
        await made.serve("--inspect")
        await made.provide()
        fields = ("Host: site.test", f"Cookie: id={SECRET}", f"Authorization: Bearer {SECRET}", "Connection: close")
        await fetch(made.port, f"/a?token={SECRET}&page=2", *fields)
        await fetch(made.port, "/b", "Host: site.test", "Connection: close")
        async with dashboard(tmp / "run") as reading, looking(browser, reading) as look:
            await look.view("Requests")
            await look.row("Requests", "site.test", "/a?token=***&page=2", "200").wait_for()
            await look.page.get_by_label("Filter").fill("status:4 /b")
            await look.sees("1 shown; secrets are masked")
            await look.page.get_by_role("button", name=re.compile("^Show ")).press("Enter")
            await look.page.get_by_role("heading", name="GET site.test/b").wait_for()
            assert await look.page.get_by_role("button", name="Replay").count() == 0
        async with dashboard(tmp / "run", allow_actions=True) as served, looking(browser, served) as look:
            page = look.page
            await page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=look.origin)
            await look.view("Requests")
            await look.row("Requests", "/a?").get_by_role("button").click()
            await page.get_by_role("heading", name="GET site.test/a?token=***&page=2").wait_for()
            body = page.get_by_label("Body of the response")
            assert await body.text_content() == '{\n  "outer": {\n    "password": "***",\n    "page": 2\n  }\n}'
            assert "Cookie: id=***" in str(await page.get_by_label("Header section of the request").text_content())
            await look.sees(re.compile(r"queue \d+\.\d ms, target \d+\.\d ms, transfer \d+\.\d ms"))
            assert await look.inaccessible() == []
            assert await look.overflow_px() == 0

            await page.get_by_role("button", name="Copy as curl").click()
            await look.sees("copied; replace what is masked")
            copied = shlex.split(await page.evaluate("navigator.clipboard.readText()"))
            assert [copied[0], copied[3]] == ["curl", "http://site.test/a?token=***&page=2"]
            assert "Authorization: Bearer ***" in copied
            async with page.expect_download() as download:
                await page.get_by_role("button", name="Download").click()
            saved = Path(await (await download.value).path()).read_text()
            assert json.loads(saved)["path"] == "/a?token=***&page=2"
            assert SECRET not in saved + await page.content() + "".join(copied)

            await page.get_by_role("button", name="Replay").click()
            await look.row("Requests", "replay of ").wait_for()
            await look.sees(re.compile("replay of [0-9a-f]{6}-1"), where="section.request")
            await eventually(lambda: len(heads) == 3, "the target got it once more")
            assert f"id={SECRET}" in heads[2] and "Goreprox-Replay: " in heads[2]
            await page.get_by_role("button", name="Close").click()
            await page.get_by_role("heading", level=2).wait_for(state="detached")


@pytest.mark.long
async def test_the_view_says_what_to_do_where_nothing_is_kept(tmp: Path) -> None:
    async with nothing_yet(tmp) as made, chromium() as browser:
        await made.serve()
        async with dashboard(tmp / "run") as served, looking(browser, served) as look:
            await look.view("Requests")
            await look.sees("No process keeps requests: start a server or an edge with --inspect.")
