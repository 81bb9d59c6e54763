"""The page of a dashboard in a real browser, and all that it complains about."""

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, async_playwright

from goreprox.config.addresses import Address
from goreprox.config.dashboard import DashboardConfig
from goreprox.monitor.dashboard import Dashboard
from tests.support.programs import program
from tests.support.sockets import HOST
from tests.support.waiting import DEADLINE_S

MS: Final = 1000
FAULTS: Final = ("serious", "critical")
"""Of axe-core's levels."""


class Look:
    """A page that is open."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.problems: list[str] = []
        """Errors and warnings of the console, and exceptions that nobody has caught."""
        self.hosts: set[str] = set()
        """Whom it has asked for something."""
        page.set_default_timeout(DEADLINE_S * MS)
        page.on("console", self._logged)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._asked)

    def _logged(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _asked(self, request: Request) -> None:
        self.hosts.add(urlsplit(request.url).netloc)

    async def view(self, title: str) -> Locator:
        """Open a view by its link; return it."""
        await self.page.get_by_role("link", name=title, exact=True).click()
        await self.page.get_by_role("heading", name=title, exact=True).wait_for()
        return self.page.locator("section.view")

    async def sees(self, text: str | re.Pattern[str], *, where: str = "main") -> None:
        """Wait until a text is there."""
        await self.page.locator(where).get_by_text(text).first.wait_for()

    def row(self, caption: str, *texts: str) -> Locator:
        """Return the rows of a table that have all of these texts."""
        found = self.page.locator(".table").get_by_role("region", name=caption, exact=True).locator("tbody tr")
        for text in texts:
            found = found.filter(has_text=text)
        return found

    async def inaccessible(self) -> list[str]:
        """Return what axe-core finds to be a serious fault, or worse."""
        found = await Axe().run(self.page)
        return [
            f"{each['id']}: {[node['html'] for node in each['nodes']]}"
            for each in found.response["violations"]
            if each["impact"] in FAULTS
        ]

    async def overflow_px(self) -> int:
        """Return by how much the page is wider than the window."""
        found = await self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert isinstance(found, int)
        return found


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser."""
    path = program("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"],
        )
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def dashboard(directory: Path, *, allow_actions: bool = False, port: int = 0) -> AsyncIterator[Dashboard]:
    """Run a dashboard of a runtime directory in this process."""
    listen = Address(HOST, port)
    made = Dashboard(DashboardConfig(directory=directory, listen=listen, allow_actions=allow_actions))
    async with made.at(listen):
        yield made


@contextlib.asynccontextmanager
async def looking(
    browser: Browser,
    made: Dashboard,
    *,
    scheme: Literal["light", "dark"] = "light",
    size: tuple[int, int] = (1200, 900),
) -> AsyncIterator[Look]:
    """Open the page by an invitation; it must have nothing to complain about at the end."""
    context = await browser.new_context(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
    invitation = made.invitation()
    look = Look(await context.new_page(), invitation.partition("/#")[0])
    try:
        await look.page.goto(invitation)
        await look.page.get_by_role("heading", name="Overview").wait_for()
        yield look
        assert look.problems == []
        assert look.hosts == {urlsplit(look.origin).netloc}
    finally:
        await context.close()
