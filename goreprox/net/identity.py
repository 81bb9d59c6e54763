"""What a certificate says about its owner, for the log and for targets."""

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Self


@dataclass(frozen=True, slots=True)
class Identity:
    """What a certificate says about its owner."""

    name: str | None
    """The first alternative name, else the common name (RFC 9525)."""
    forwarded: bytes
    """For X-Forwarded-Client-Cert, in the form of Envoy."""

    @classmethod
    def of(cls, certificate: object, der: bytes) -> Self:
        """Read what `getpeercert` returns, and hash the certificate itself."""
        parts, name = [f"Hash={hashlib.sha256(der).hexdigest()}"], None
        match certificate:
            case {"subject": subject}:
                pairs = [pair for part in subject for pair in part]
                name = next((value for kind, value in pairs if kind == "commonName"), None)
                parts.append(
                    f"Subject={_quoted(','.join(f'{_SHORT.get(kind, kind)}={value}' for kind, value in pairs))}"
                )
        match certificate:
            case {"subjectAltName": ((_, str(name)), *_) as names}:
                parts += [f"{kind}={_quoted(value)}" for kind, value in names if kind in ("URI", "DNS")]
        return cls(name, ";".join(parts).encode("ascii", "backslashreplace"))


_SHORT: Final = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}
"""RFC 4514, 3."""


def _quoted(value: str) -> str:
    """Quote a value unless it is plain; control characters, which no field may hold, become spaces."""
    value = re.sub(r"[\x00-\x1f\x7f]", " ", value)
    plain = re.fullmatch(r"[A-Za-z0-9._:/@*-]*", value)
    return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
