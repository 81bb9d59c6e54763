"""What a target is told about the client: X-Forwarded-For, -Proto, -Host and -Client-Cert, Forwarded (RFC 7239), Via.

A client can write anything into these fields, so what it wrote is dropped, unless it is a proxy that is trusted: then
our part is added to its own. Of one that sends the X- fields alone, Forwarded says the same as these. Pure functions of
a request and addresses.
"""

import ipaddress
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from goreprox.config.networks import Network
from goreprox.endpoint import ip_of
from goreprox.http.messages import Fields, Request

PSEUDONYM: Final = b"goreprox"
MAX_HOPS: Final = 32
"""Addresses of X-Forwarded-For, the nearest ones, that Forwarded is made of: a client may send thousands."""
_FOR, _PROTO, _HOST = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"
_FORWARDED, _VIA, _CERTIFICATE = b"forwarded", b"via", b"x-forwarded-client-cert"
REPLAY: Final = b"Goreprox-Replay"
"""Says that the inspector has sent a request once more, and has the id of the first one."""
FIELDS: Final = frozenset(
    (_FOR, _PROTO, _HOST, _FORWARDED, _VIA, _CERTIFICATE, REPLAY.lower(), b"x-forwarded-port", b"x-real-ip")
)


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Which proxies to believe, and the scheme of a listener."""

    trusted: tuple[Network, ...] = ()
    proto: bytes = b"http"
    via: bool = False
    """Whether to add Via (RFC 9110, 7.6.3)."""
    replay: bytes = b""
    """The id of the request that each of them is sent in place of, if one is."""

    def trusts(self, address: str) -> bool:
        """Whether to believe what an address says about its clients."""
        return any(ip_of(address) in network for network in self.trusted)

    def client_of(self, request: Request, peer: str) -> str:
        """Return the address of the client behind all trusted proxies, of which `peer` is the last if it is one."""
        client, hops = peer, _hops(request)
        while self.trusts(client) and (hop := next(hops, None)) is not None:
            client = hop
        return client

    def is_https(self, request: Request, peer: str) -> bool:
        """Whether the client of a request speaks TLS, with us or with a trusted proxy, which `peer` is then."""
        said = request.first(_PROTO) if self.trusts(peer) else None
        return (said or self.proto).lower() == b"https"

    def fields(self, request: Request, peer: str, *, host: bytes, certificate: bytes = b"") -> Fields:
        """Return the fields for the target of a request from `peer`; `certificate` describes the client's."""
        ours = {
            _FOR: peer.encode(),
            _FORWARDED: _element(peer, host=host, proto=self.proto),
            _VIA: b"%b %b" % (request.version, PSEUDONYM) if self.via else b"",
            _CERTIFICATE: certificate,
        }
        proto, original = self.proto, host
        if self.trusts(peer):
            proto, original = request.first(_PROTO) or proto, request.first(_HOST) or host
            theirs = {name: _joined(request, name) for name in ours}
            if not theirs[_FORWARDED] and any(request.first(name) for name in (_FOR, _PROTO, _HOST)):
                theirs[_FORWARDED] = _converted(request, host=original, proto=proto)
            ours = {name: b", ".join(filter(None, (theirs[name], value))) for name, value in ours.items()}
        fields = [
            (b"X-Forwarded-For", ours[_FOR]),
            (b"X-Forwarded-Proto", proto),
            (b"X-Forwarded-Host", original),
            (b"Forwarded", ours[_FORWARDED]),
            (b"Via", ours[_VIA]),
            (b"X-Forwarded-Client-Cert", ours[_CERTIFICATE]),
            (REPLAY, self.replay),
        ]
        return [(name, value) for name, value in fields if value]


def _hops(request: Request) -> Iterator[str]:
    """Yield the addresses in X-Forwarded-For, the nearest one first, up to what is no address."""
    for hop in reversed(_joined(request, _FOR).decode("latin-1").split(",")):
        if address := _without_port(hop.strip()):
            try:
                yield str(ipaddress.ip_address(address))
            except ValueError:
                return


def _converted(request: Request, *, host: bytes, proto: bytes) -> bytes:
    """Return the X- fields in the form of Forwarded (RFC 7239, 7.4): an element for each hop, the client's first.

    `host` and `proto` are those that the client used.
    """
    *nearer, client = list(itertools.islice(_hops(request), MAX_HOPS)) or ["unknown"]
    return b", ".join([_element(client, host=host, proto=proto), *(_for(hop) for hop in reversed(nearer))])


def _element(hop: str, *, host: bytes, proto: bytes) -> bytes:
    """Return an element of Forwarded."""
    return b"%b;host=%b;proto=%b" % (_for(hop), _quoted(host), proto if proto.isalpha() else _quoted(proto))


def _for(hop: str) -> bytes:
    """Name a hop by its address, or as `unknown` (RFC 7239, 6)."""
    return (f'for="[{hop}]"' if ":" in hop else f"for={hop}").encode()


def _quoted(value: bytes) -> bytes:
    """Return a quoted-string (RFC 9110, 5.6.4)."""
    return b'"%b"' % value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def _without_port(hop: str) -> str:
    """Return the address of a hop without the port that some proxies add, to IPv6 addresses behind brackets."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    address, _, port = hop.rpartition(":")
    return address if port.isdecimal() and ":" not in address else hop


def _joined(request: Request, wanted: bytes) -> bytes:
    return b", ".join(request.values.get(wanted, ()))
