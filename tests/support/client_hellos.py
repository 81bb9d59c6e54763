"""First messages of TLS clients: those of OpenSSL, and others that no library would send."""

import ssl
from collections.abc import Sequence

MODERN, OLD = ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2


def first_bytes(host: str | None, *alpn: str, version: ssl.TLSVersion = MODERN) -> bytes:
    """Return what OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=host).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError


def vector(width: int, body: bytes) -> bytes:
    """Write bytes after their length."""
    return len(body).to_bytes(width) + body


def extension(kind: int, body: bytes) -> bytes:
    """Write an extension."""
    return kind.to_bytes(2) + vector(2, body)


def server_name(*names: bytes, kind: int = 0) -> bytes:
    """Write the extension with these names."""
    return extension(0, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names)))


def alpn(*protocols: bytes) -> bytes:
    """Write the extension with these protocols."""
    return extension(16, vector(2, b"".join(vector(1, protocol) for protocol in protocols)))


def message(*extensions: bytes, version: int = 0x0303, kind: int = 1, after: bytes = b"") -> bytes:
    """Write a ClientHello with these extensions."""
    fields = [
        version.to_bytes(2),
        bytes(32),
        vector(1, bytes(32)),
        vector(2, b"\x13\x01\xc0\x2f"),
        vector(1, b"\0"),
        vector(2, b"".join(extensions)),
        after,
    ]
    return bytes([kind]) + vector(3, b"".join(fields))


def records(data: bytes, sizes: Sequence[int] = ()) -> bytes:
    """Write a message as one record, or as fragments of these sizes, the last of which take what is left."""
    pieces, position = [], 0
    for size in (*sizes, 1 << 14):
        while position < len(data) and size:
            pieces.append(data[position : position + size])
            position += size
            if size < 1 << 14:
                break
    return b"".join(b"\x16\x03\x01" + vector(2, piece) for piece in pieces)
