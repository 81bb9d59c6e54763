"""What a target is told about the client: X-Forwarded-For, -Proto, -Host and -Client-Cert, Forwarded (RFC 7239), Via.

A client can write anything into these fields, so what it wrote is dropped, unless it is a proxy that is trusted: then
our part is added to its own. Pure functions of a request and addresses.
"""

import ipaddress
from dataclasses import dataclass
from typing import Final

import h11

from goreprox.config.networks import Network
from goreprox.endpoint import ip_of
from goreprox.http.requests import Fields, value_of, with_dashes

PSEUDONYM: Final = b"goreprox"
_FOR, _PROTO, _HOST = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"
_FORWARDED, _VIA, _CERTIFICATE = b"forwarded", b"via", b"x-forwarded-client-cert"
FIELDS: Final = frozenset((_FOR, _PROTO, _HOST, _FORWARDED, _VIA, _CERTIFICATE, b"x-forwarded-port", b"x-real-ip"))


def is_forwarding(name: bytes) -> bool:
    """Whether a field is one of these; many servers read `_` as `-`."""
    return with_dashes(name) in FIELDS


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Which proxies to believe, and the scheme of a listener."""

    trusted: tuple[Network, ...] = ()
    proto: bytes = b"http"
    via: bool = False
    """Whether to add Via (RFC 9110, 7.6.3)."""

    def trusts(self, address: str) -> bool:
        """Whether to believe what an address says about its clients."""
        return any(ip_of(address) in network for network in self.trusted)

    def client_of(self, request: h11.Request, peer: str) -> str:
        """Return the address of the client behind all trusted proxies, of which `peer` is the last if it is one."""
        client = peer
        hops = [hop.strip() for hop in _joined(request, _FOR).decode("latin-1").split(",") if hop.strip()]
        while hops and self.trusts(client):
            try:
                client = str(ipaddress.ip_address(_without_port(hops.pop())))
            except ValueError:
                break
        return client

    def fields(self, request: h11.Request, peer: str, *, host: bytes, certificate: bytes = b"") -> Fields:
        """Return the fields for the target of a request from `peer`; `certificate` describes the client's."""
        node = f'"[{peer}]"' if ":" in peer else peer
        ours = {
            _FOR: peer.encode(),
            _FORWARDED: b'for=%b;host="%b";proto=%b' % (node.encode(), host, self.proto),
            _VIA: b"%b %b" % (request.http_version, PSEUDONYM) if self.via else b"",
            _CERTIFICATE: certificate,
        }
        proto, original = self.proto, host
        if self.trusts(peer):
            ours = {name: b", ".join(filter(None, (_joined(request, name), value))) for name, value in ours.items()}
            proto, original = value_of(request, _PROTO) or proto, value_of(request, _HOST) or host
        fields = [
            (b"X-Forwarded-For", ours[_FOR]),
            (b"X-Forwarded-Proto", proto),
            (b"X-Forwarded-Host", original),
            (b"Forwarded", ours[_FORWARDED]),
            (b"Via", ours[_VIA]),
            (b"X-Forwarded-Client-Cert", ours[_CERTIFICATE]),
        ]
        return [(name, value) for name, value in fields if value]


def _without_port(hop: str) -> str:
    """Return the address of a hop without the port that some proxies add, to IPv6 addresses behind brackets."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    address, _, port = hop.rpartition(":")
    return address if port.isdecimal() and ":" not in address else hop


def _joined(request: h11.Request, wanted: bytes) -> bytes:
    return b", ".join(value for name, value in request.headers.raw_items() if name.lower() == wanted)
