"""Pebble, an ACME server for tests, with its own DNS (pebble-challtestsrv): https://github.com/letsencrypt/pebble."""

import asyncio
import contextlib
import json
import socket
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import daemon, program, reserved_port
from tests.support.sockets import HOST
from tests.support.tls import Authority

NOBODY = "127.0.0.99"
VALID_S = 90 * 86_400


@dataclass(slots=True)
class Pebble:
    """A running one."""

    port: int
    management: int
    dns_management: int
    authority: Authority
    """Of its own HTTPS."""

    @property
    def options(self) -> tuple[str, ...]:
        """Of a role that gets certificates here."""
        return ("--acme-directory", self.url, "--acme-ca", str(self.authority.ca_file))

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}/dir"

    async def root(self) -> str:
        """Return the certificate that signs all others, which is new at each start."""
        return await asyncio.to_thread(self._get, f"https://{HOST}:{self.management}/roots/0")

    def _get(self, url: str) -> str:
        with urllib.request.urlopen(url, context=self.authority.trusting(), timeout=60) as response:
            text: str = response.read().decode()
        return text

    async def lead_astray(self, host: str, *, back: bool = False) -> None:
        """Let the address of a host be one at which nobody listens, or this machine's again."""
        await asyncio.to_thread(self._ask_dns, "clear-a" if back else "add-a", host)

    def _ask_dns(self, what: str, host: str) -> None:
        body = json.dumps({"host": f"{host}.", "addresses": [NOBODY]}).encode()
        urllib.request.urlopen(f"http://{HOST}:{self.dns_management}/{what}", body, timeout=60).close()


def _udp_port() -> int:
    """Return a port at which a DNS server can listen; nobody else gets it by chance until then."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def pebble(
    tmp: Path, *, http_port: int, tls_port: int, valid_s: int = VALID_S, env: dict[str, str] | None = None
) -> AsyncIterator[Pebble]:
    """Run an ACME server, for which every host is this machine; with variables that tell it to misbehave."""
    directory = tmp / "pebble"
    directory.mkdir()
    authority = Authority(directory)
    with reserved_port() as port, reserved_port() as management, reserved_port() as dns_management:
        dns = _udp_port()
        (directory / "pebble.json").write_text(
            json.dumps(
                {
                    "pebble": {
                        "listenAddress": f"{HOST}:{port}",
                        "managementListenAddress": f"{HOST}:{management}",
                        "certificate": str(authority.cert),
                        "privateKey": str(authority.key),
                        "httpPort": http_port,
                        "tlsPort": tls_port,
                        "ocspResponderURL": "",
                        "externalAccountBindingRequired": False,
                        "domainBlocklist": ["blocked.test"],
                        "retryAfter": {"authz": 1, "order": 1},
                        "keyAlgorithm": "ecdsa",
                        "profiles": {"default": {"description": "the only one", "validityPeriod": valid_s}},
                    }
                }
            )
        )
        names = ("-defaultIPv4", HOST, "-defaultIPv6", "", "-dnsserver", f"{HOST}:{dns}")
        nothing = ("-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "")
        server = (program("pebble"), "-config", str(directory / "pebble.json"), "-dnsserver", f"{HOST}:{dns}")
        resolver = (
            program("pebble-challtestsrv"), *names, *nothing, "-management", f"{HOST}:{dns_management}",
        )  # fmt: skip
        behaviour = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", **(env or {})}
        async with daemon(directory, dns_management, *resolver), daemon(directory, port, *server, env=behaviour):
            yield Pebble(port, management, dns_management, authority)
