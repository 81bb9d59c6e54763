"""Take the screenshots of `docs/dashboard.md`: `make screenshots`.

Real processes carry a few connections on this machine, a broker is stopped and started again, and Debian's Chromium
looks at the page.
"""

import contextlib
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socket import create_connection
from typing import Final

from playwright.sync_api import Browser, sync_playwright

from benchmarks.local import HOST, free_port, wait_for_listener

DOCS: Final = Path(__file__).parents[1] / "docs"
CHROMIUM: Final = "/usr/bin/chromium"
HISTORY_S: Final = 60.0
"""How much the charts show of the last hour."""
CLIENTS: Final = 4
WIDE: Final = (1000, 1000)
PHONE: Final = (390, 800)
MOST_KIB: Final = 120
"""Of a picture."""


class Echo(socketserver.BaseRequestHandler):
    """A target."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


@contextlib.contextmanager
def target() -> Iterator[int]:
    with socketserver.ThreadingTCPServer((HOST, 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


class Cluster:
    """Processes that share a runtime directory."""

    def __init__(self, directory: Path) -> None:
        self._common = ("--runtime-dir", str(directory), "--log-level", "warning")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen((sys.executable, "-m", "goreprox", command, *options, *self._common))
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def broker(self, name: str, providers: int, edges: int) -> subprocess.Popen[bytes]:
        where = ("--providers", f"{HOST}:{providers}", "--edges", f"{HOST}:{edges}")
        started = self.start("broker", "--name", name, *where, "--insecure")
        wait_for_listener(HOST, edges)
        return started

    def invitation(self) -> str:
        command = (sys.executable, "-m", "goreprox", "dashboard", "invite", *self._common[:2])
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def talk(port: int, pause_s: float) -> None:
    """Be a client for as long as this program runs."""
    with create_connection((HOST, port)) as client:
        while True:
            for size in (2_000, 30_000, 12_000, 60_000):
                client.sendall(bytes(size))
                left = size
                while left:
                    left -= len(client.recv(left))
                time.sleep(pause_s)


def look(browser: Browser, url: str, name: str, *, view: str, size: tuple[int, int], dark: bool = False) -> None:
    """Take a picture of a view."""
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    page.goto(url)
    page.get_by_role("heading", name="Overview").wait_for()
    page.get_by_role("link", name=view, exact=True).click()
    page.locator("tbody tr").first.wait_for()
    time.sleep(3)  # rates take two looks
    path = DOCS / f"dashboard-{name}.png"
    page.screenshot(path=path)
    page.close()
    size_kib = path.stat().st_size >> 10
    print(f"{path.name}: {size_kib} KiB")
    assert size_kib <= MOST_KIB, f"more than {MOST_KIB} KiB"


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="gp") as directory,
        target() as served,
        Cluster(Path(directory) / "run") as cluster,
        sync_playwright() as playwright,
    ):
        east, west, web, ssh, page = ((free_port(), free_port()) for _ in range(5))
        first = cluster.broker("east", *east)
        cluster.broker("west", *west)
        ports = ("--listen", f"{HOST}:{web[0]}=web", "--listen", f"{HOST}:{ssh[0]}=ssh")
        brokers = [f"--broker={HOST}:{edges}" for _, edges in (east, west)]
        servers = [f"--server={HOST}:{providers}" for providers, _ in (east, west)]
        cluster.start("edge", "--name", "tunnel", *ports, *brokers, "--insecure")
        for name, services in (("laptop", ("web", "ssh")), ("office", ("web",))):
            targets = [f"{service}={HOST}:{served}" for service in services]
            cluster.start("provider", *targets, "--name", name, *servers, "--check", "tcp", "--insecure")
        cluster.start("dashboard", "--listen", f"{HOST}:{page[0]}", "--allow-actions")
        for port in (web[0], ssh[0], page[0]):
            wait_for_listener(HOST, port)
        for number in range(CLIENTS):
            port = (ssh if number == 0 else web)[0]
            threading.Thread(target=talk, args=(port, 0.1 * (number + 1)), daemon=True).start()
        time.sleep(HISTORY_S / 2)
        first.kill()
        first.wait()
        time.sleep(5)
        cluster.broker("east", *east)
        time.sleep(HISTORY_S / 2)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        look(browser, cluster.invitation(), "overview", view="Overview", size=WIDE)
        look(browser, cluster.invitation(), "streams", view="Streams", size=(1000, 480), dark=True)
        look(browser, cluster.invitation(), "outages", view="Outages", size=(1000, 560))
        look(browser, cluster.invitation(), "phone", view="Overview", size=PHONE, dark=True)
        browser.close()


if __name__ == "__main__":
    main()
