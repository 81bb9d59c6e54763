"""What Python does not show of certificates that OpenSSL has read, hence well-formed (RFC 5280; DER: X.690)."""

import datetime
import math
import re
import ssl
from collections.abc import Iterator
from typing import Final, NamedTuple

_SUBJECT_ALT_NAME: Final = bytes((0x55, 0x1D, 0x11))
"""The identifier 2.5.29.17 (RFC 5280, 4.2.1.6)."""
_VERSION, _EXTENSIONS, _DNS_NAME, _UTC_TIME, _OCTET_STRING = 0xA0, 0xA3, 0x82, 0x17, 0x04
"""Tags."""


class _Element(NamedTuple):
    tag: int
    content: bytes


def blocks(pem: str) -> list[str]:
    """Return the certificates of a file without what stands between them (RFC 7468)."""
    return re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", pem, re.DOTALL)


def expiry(pem: str) -> float:
    """Return when the first certificate of a chain to expire does so, in seconds since 1970 (RFC 5280, 4.1.2.5)."""
    return min((_not_after(ssl.PEM_cert_to_DER_cert(block)) for block in blocks(pem)), default=math.inf)


def host_names(pem: str) -> frozenset[str]:
    """Return the host names of the first certificate of a chain, in lower case and ASCII form (RFC 9525, 6.3)."""
    *_, last = _fields(ssl.PEM_cert_to_DER_cert(blocks(pem)[0]))
    names: set[str] = set()
    for extension in _elements(_only(last.content)) if last.tag == _EXTENSIONS else ():
        identifier, *_, value = _elements(extension.content)
        if identifier.content == _SUBJECT_ALT_NAME and value.tag == _OCTET_STRING:
            found = _elements(_only(value.content))
            names |= {each.content.decode("ascii", "replace").lower() for each in found if each.tag == _DNS_NAME}
    return frozenset(names)


def _not_after(der: bytes) -> float:
    fields = [each for each in _fields(der) if each.tag != _VERSION]
    validity = fields[3]  # behind serialNumber, signature and issuer
    _, end = _elements(validity.content)
    text = end.content.decode("ascii")
    if end.tag == _UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC).timestamp()


def _fields(der: bytes) -> Iterator[_Element]:
    """Yield the fields of `tbsCertificate`."""
    signed, *_ = _elements(_only(der))
    return _elements(signed.content)


def _only(data: bytes) -> bytes:
    """Return the content of the element that is all of `data`."""
    (element,) = _elements(data)
    return element.content


def _elements(data: bytes) -> Iterator[_Element]:
    at = 0
    while at < len(data):
        length, begin = data[at + 1], at + 2
        if length & 0x80:
            begin += length & 0x7F
            length = int.from_bytes(data[at + 2 : begin], "big")
        yield _Element(data[at], data[begin : begin + length])
        at = begin + length
