"""Certificates for tests, and a TLS client of which every step is ours: half-close, truncation and reset included."""

import asyncio
import base64
import contextlib
import hashlib
import ssl
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.waiting import DEADLINE_S

NAME, ADDRESS = "goreprox.test", "127.0.0.1"


class Authority:
    """Signs certificates, and keeps them in files."""

    def __init__(self, directory: Path, name: str = NAME) -> None:
        self.directory, self.name = directory, name
        self.ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.renew()

    def renew(self) -> None:
        """Put a new certificate, with a new key, in the place of the server's."""
        issued = self.ca.issue_cert(self.name, ADDRESS)
        new = self.directory / "new"
        for path, content in (
            (self.cert, b"".join(blob.bytes() for blob in issued.cert_chain_pems)),
            (self.key, issued.private_key_pem.bytes()),
        ):
            new.write_bytes(content)
            new.chmod(0o600)
            new.rename(path)

    @property
    def fingerprint(self) -> str:
        """Of the server's public key, as browsers take it."""
        key = x509.load_pem_x509_certificate(self.cert.read_bytes()).public_key()
        info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(hashlib.sha256(info).digest()).decode()

    @property
    def options(self) -> tuple[str, ...]:
        """Of a server that has the certificate."""
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))

    def trusting(self, *, name: str | None = None) -> ssl.SSLContext:
        """A client's context; with a certificate of that name, if one is given."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if name is not None:
            self.ca.issue_cert(name).configure_cert(context)
        return context


class Client:
    """One end of a TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
        self.reader, self.writer = reader, writer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=NAME)

    async def shake_hands(self) -> "Client":
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    self.tls.do_handshake()
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self._receive()
                else:
                    await self._flush()
                    return self

    async def _flush(self) -> None:
        self.writer.write(self._out.read())
        await self.writer.drain()

    async def _receive(self) -> None:
        data = await self.reader.read(1 << 16)
        if not data:
            raise EOFError("FIN without close_notify")
        self._in.write(data)

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self.tls.write(rest) :]
            await self._flush()

    async def read(self, most: int = 1 << 18) -> bytes:
        """Return text, b"" after close_notify; EOFError where there is FIN instead."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    return self.tls.read(most)
                except ssl.SSLZeroReturnError:
                    return b""
                except ssl.SSLWantReadError:
                    await self._receive()

    async def read_all(self) -> bytes:
        parts = []
        while data := await self.read():
            parts.append(data)
        return b"".join(parts)

    async def say_goodbye(self) -> None:
        """Send close_notify, and go on reading. What is here already must have been read."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self._flush()
