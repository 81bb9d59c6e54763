"""Where clients go by the name that they ask for: real clients through real processes."""

from pathlib import Path

from tests.support.processes import nothing_yet
from tests.support.programs import output_of
from tests.support.sockets import HOST
from tests.support.tls import NAME, Authority
from tests.support.web import curl, polite


async def test_curl_follows_from_http_to_https(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with nothing_yet(tmp_path) as made:
        made.scheme = "http"
        await made.target(polite)
        await made.serve("--listen", f"https://{HOST}:0", "--http-redirect", *authority.options)
        await made.provide()
        ports = (await made.server.ready())["clients"]
        assert isinstance(ports, list)
        plain, secure = ports
        get = curl(
            "--location", "--cacert", str(authority.ca_file), "--write-out", " %{num_redirects} %{url_effective}"
        )
        names = [f"{NAME}:{port}:{HOST}" for port in (plain, secure)]
        resolved = [part for name in names for part in ("--resolve", name)]
        moved = await output_of(*get, *resolved, f"http://{NAME}:{plain}/a?b")
        assert moved == f"/a?b 1 https://{NAME}:{secure}/a?b"
        for url in (f"http://{HOST}:{plain}/a", f"http://{HOST}:{plain}/.well-known/acme-challenge/x"):
            assert (await output_of(*get, url)).endswith(f" 0 {url}")
