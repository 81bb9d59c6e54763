"""Other tunnels, each with its defaults; with encryption off and on where it has both."""

import re
import subprocess
from typing import Final

from benchmarks.local import HOST, BenchmarkError, find, free_port
from benchmarks.sides import BASES, OURS, Kind, Side, Stand

FRPS: Final = """
bindAddr = "{host}"
bindPort = {port}
log.level = "warn"
"""
FRPC: Final = """
serverAddr = "{to[0]}"
serverPort = {to[1]}
log.level = "warn"
transport.tls.enable = {tls}

[[proxies]]
name = "target"
type = "tcp"
localIP = "{host}"
localPort = {target}
remotePort = {public}
"""
RATHOLE_SERVER: Final = """
[server]
bind_addr = "{host}:{port}"
default_token = "benchmark"
[server.services.target]
bind_addr = "{host}:{public}"
"""
RATHOLE_CLIENT: Final = """
[client]
remote_addr = "{to[0]}:{to[1]}"
default_token = "benchmark"
[client.services.target]
local_addr = "{host}:{target}"
"""
RATHOLE_NOISE: Final = """
[{role}.transport]
type = "noise"
[{role}.transport.noise]
{key}
"""
# bore has no option for the port of its links. With an address of its own, the port is free for the relay at 127.0.0.1.
BORE_AT: Final = ("127.0.0.2", 7835)


def frp(stand: Stand, *, tls: bool) -> None:
    """Start frps and frpc; TLS is on unless it is switched off."""
    port = free_port()
    (stand.folder / "frps.toml").write_text(FRPS.format(host=HOST, port=port))
    stand.start("frps", "-c", str(stand.folder / "frps.toml"))
    stand.wait_for((HOST, port))
    config = FRPC.format(
        to=stand.over_path((HOST, port)), host=HOST, target=stand.target.port, public=stand.port, tls=str(tls).lower()
    )
    (stand.folder / "frpc.toml").write_text(config)
    stand.start("frpc", "-c", str(stand.folder / "frpc.toml"))


def rathole(stand: Stand, *, noise: bool) -> None:
    """Start both halves of rathole; noise: with its own keys, made before."""
    port = free_port()
    to = stand.over_path((HOST, port))
    server = RATHOLE_SERVER.format(host=HOST, port=port, public=stand.port)
    client = RATHOLE_CLIENT.format(to=to, host=HOST, target=stand.target.port)
    if noise:
        made = subprocess.run([find("rathole") or "rathole", "--genkey"], check=True, capture_output=True, text=True)
        keys = re.findall(r"Key:\s+(\S+)", made.stdout)
        if len(keys) != 2:
            raise BenchmarkError("rathole --genkey did not print two keys")
        server += RATHOLE_NOISE.format(role="server", key=f'local_private_key = "{keys[0]}"')
        client += RATHOLE_NOISE.format(role="client", key=f'remote_public_key = "{keys[1]}"')
    (stand.folder / "server.toml").write_text(server)
    (stand.folder / "client.toml").write_text(client)
    stand.start("rathole", "--server", str(stand.folder / "server.toml"))
    stand.wait_for((HOST, port))
    stand.start("rathole", "--client", str(stand.folder / "client.toml"))


def bore(stand: Stand) -> None:
    """Start both halves of bore."""
    stand.start("bore", "server", "--bind-addr", BORE_AT[0], "--bind-tunnels", HOST)
    stand.wait_for(BORE_AT)
    host, _ = stand.over_path(BORE_AT, port=BORE_AT[1])
    local = ["--local-host", HOST, "--to", host, "--port", str(stand.port)]
    stand.start("bore", "local", str(stand.target.port), *local)


def chisel(stand: Stand) -> None:
    """Start both halves of chisel, which is always encrypted."""
    port = free_port()
    stand.start("chisel", "server", "--host", HOST, "--port", str(port), "--reverse")
    stand.wait_for((HOST, port))
    host, port = stand.over_path((HOST, port))
    stand.start("chisel", "client", f"http://{host}:{port}", f"R:{HOST}:{stand.port}:{HOST}:{stand.target.port}")


_FRP: Final = ("frps", "frpc")
PEERS: Final = (
    Side("frp", "frp, plain", Kind.TUNNEL, False, _FRP, lambda stand: frp(stand, tls=False), ("frps", "--version")),
    Side("frp-tls", "frp, TLS", Kind.TUNNEL, True, _FRP, lambda stand: frp(stand, tls=True), ("frps", "--version")),
    Side(
        "rathole",
        "rathole, plain",
        Kind.TUNNEL,
        False,
        ("rathole",),
        lambda stand: rathole(stand, noise=False),
        ("rathole", "--version"),
    ),
    Side(
        "rathole-noise",
        "rathole, noise",
        Kind.TUNNEL,
        True,
        ("rathole",),
        lambda stand: rathole(stand, noise=True),
        ("rathole", "--version"),
    ),
    Side("bore", "bore", Kind.TUNNEL, False, ("bore",), bore, ("bore", "--version")),
    Side("chisel", "chisel", Kind.TUNNEL, True, ("chisel",), chisel, ("chisel", "--version")),
)
SIDES: Final = (*BASES, *PEERS, *OURS)
"""All that are compared, in the order of the tables."""
