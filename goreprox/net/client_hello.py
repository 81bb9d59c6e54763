"""The first message of a TLS client, read without answering it (RFC 8446, 4.1.2; RFC 5246, 7.4.1.2). Sans-IO.

It says in plaintext which host the client wants, and which protocols it speaks, to all who read it. What is read here
only decides where the bytes go, so all that the target will see again is left to the target: versions, ciphers, keys.

With Encrypted Client Hello the name read here is the outer one, that of the client-facing server (RFC 9849, 5).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

MAX_MESSAGE_BYTES: Final = 16 * 1024
"""The longest message. Browsers send 2 KiB, of which more than half are keys against quantum computers."""
MAX_RECORDS: Final = 64
"""Over so many records a message may be fragmented; clients that hide the name from filters use a handful."""
_RECORD_HEAD, _MESSAGE_HEAD = 5, 4
MAX_BYTES: Final = MAX_MESSAGE_BYTES + MAX_RECORDS * _RECORD_HEAD
"""Bytes after which a ClientHello is complete, or malformed: about 16.3 KiB."""
_MAX_FRAGMENT: Final = 1 << 14
_HANDSHAKE, _ALERT, _CLIENT_HELLO, _MAJOR = 22, 21, 1, 3
_FATAL: Final = 2
DECODE_ERROR: Final = 50
UNRECOGNIZED_NAME: Final = 112
_SERVER_NAME, _ALPN, _ECH = 0, 16, 0xFE0D
_HOST_NAME: Final = 0
_HOST: Final = re.compile(rb"(?=.{1,253}\.?\Z)((?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63})\.?")


class Malformed(Exception):
    """A connection does not begin with a ClientHello; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What decides where a connection goes."""

    server_name: str | None
    """The host that the client asks for, in lower case and without a dot at its end (RFC 6066, 3)."""
    alpn: tuple[bytes, ...]
    """The protocols that it offers, in its order (RFC 7301, 3.1)."""
    has_ech: bool
    """Whether it sends an encrypted ClientHello, too, or something that looks like one."""


def read(data: bytes | bytearray) -> ClientHello | None:
    """Return the ClientHello at the start of `data`; None if it is longer than that.

    It costs little to ask again after each byte: nothing is copied before the message is complete.

    Raises:
        Malformed: there is none, or one that is longer than `MAX_BYTES`.
    """
    fragments: list[tuple[int, int]] = []
    head, size = b"", 0
    for start, stop in _fragments(data):
        fragments.append((start, stop))
        size += stop - start
        head += data[start : min(stop, start + _MESSAGE_HEAD - len(head))]
        needed = _message_size(head)
        if size >= needed:
            message = b"".join(data[start:stop] for start, stop in fragments)
            return _read_message(_Bytes(message[_MESSAGE_HEAD:needed]))
    return None


def fatal_alert(description: int) -> bytes:
    """Return the record that tells a client why it is rejected (RFC 8446, 6.2)."""
    return bytes([_ALERT, _MAJOR, 3, 0, 2, _FATAL, description])


def _fragments(data: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield where the fragment in each record begins and ends, of the last record as far as it is there.

    Raises:
        Malformed: it is no record of a handshake, or there are too many.
    """
    position = 0
    for _ in range(MAX_RECORDS):
        head = data[position : position + _RECORD_HEAD]
        if head and head[0] != _HANDSHAKE:
            raise Malformed(f"a record is of type {head[0]}, expected {_HANDSHAKE} (handshake)")
        if len(head) > 1 and head[1] != _MAJOR:
            raise Malformed(f"a record is of version {head[1]}, expected {_MAJOR} (TLS)")
        if len(head) < _RECORD_HEAD:
            return
        length = int.from_bytes(head[3:])
        if not 1 <= length <= _MAX_FRAGMENT:
            raise Malformed(f"a record has {length} bytes, expected 1 to {_MAX_FRAGMENT}")
        start = position + _RECORD_HEAD
        position = start + length
        yield start, min(position, len(data))
        if position > len(data):
            return
    raise Malformed(f"it is fragmented over more than {MAX_RECORDS} records")


def _message_size(head: bytes) -> int:
    """Return the size of a message with its head, or of the head as long as that is not complete.

    Raises:
        Malformed: it is no ClientHello, or too long.
    """
    if head and head[0] != _CLIENT_HELLO:
        raise Malformed(f"the first message is of type {head[0]}, expected {_CLIENT_HELLO} (ClientHello)")
    if len(head) < _MESSAGE_HEAD:
        return _MESSAGE_HEAD
    size = _MESSAGE_HEAD + int.from_bytes(head[1:])
    if size > MAX_MESSAGE_BYTES:
        raise Malformed(f"it has {size:,} bytes, expected at most {MAX_MESSAGE_BYTES:,}")
    return size


class _Bytes:
    """Takes fields from bytes that are complete."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def take(self, count: int, what: str) -> bytes:
        """Take so many bytes.

        Raises:
            Malformed: there are fewer.
        """
        taken = self._data[self._position : self._position + count]
        if len(taken) < count:
            raise Malformed(f"{what}: it ends after {len(taken)} bytes, expected {count}")
        self._position += count
        return taken

    def number(self, width: int, what: str) -> int:
        """Take a number of so many bytes."""
        return int.from_bytes(self.take(width, what))

    def vector(self, width: int, what: str, least: int = 0) -> Self:
        """Take a length of so many bytes, and as many bytes as it says (RFC 8446, 3.4)."""
        length = self.number(width, what)
        if length < least:
            raise Malformed(f"{what}: it has {length} bytes, expected at least {least}")
        return type(self)(self.take(length, what))

    def rest(self) -> bytes:
        """Take all that is left."""
        return self._data[self._position :]

    def end(self, what: str) -> None:
        """Require that nothing is left.

        Raises:
            Malformed: something is.
        """
        if self:
            raise Malformed(f"{what}: {len(self.rest())} bytes more than expected")


def _read_message(message: _Bytes) -> ClientHello:
    version = message.number(2, "version")
    if version >> 8 != _MAJOR:
        raise Malformed(f"version 0x{version:04x}, expected 0x03… (TLS)")
    message.take(32, "random")
    message.vector(1, "session id")
    message.vector(2, "cipher suites", least=2)
    message.vector(1, "compression methods", least=1)
    extensions = _read_extensions(message.vector(2, "extensions")) if message else {}
    message.end("ClientHello")
    name, alpn = extensions.get(_SERVER_NAME), extensions.get(_ALPN)
    return ClientHello(
        None if name is None else _read_name(name), () if alpn is None else _read_alpn(alpn), _ECH in extensions
    )


def _read_extensions(vector: _Bytes) -> dict[int, _Bytes]:
    extensions: dict[int, _Bytes] = {}
    while vector:
        kind = vector.number(2, "extension")
        if kind in extensions:  # which of two names a target takes is not for us to guess (RFC 8446, 4.2)
            raise Malformed(f"extension {kind} is there twice")
        extensions[kind] = vector.vector(2, f"extension {kind}")
    return extensions


def _read_name(extension: _Bytes) -> str:
    names = extension.vector(2, "server name", least=1)
    extension.end("server name")
    kind = names.number(1, "server name")
    if kind != _HOST_NAME:
        raise Malformed(f"server name: it is of type {kind}, expected {_HOST_NAME} (host name)")
    name = names.vector(2, "server name", least=1).rest()
    names.end("server name")
    match = _HOST.fullmatch(name)
    if match is None:
        raise Malformed("server name: it is no host name")
    return match[1].decode().lower()


def _read_alpn(extension: _Bytes) -> tuple[bytes, ...]:
    protocols = extension.vector(2, "ALPN", least=1)
    extension.end("ALPN")
    found = []
    while protocols:
        found.append(protocols.vector(1, "ALPN", least=1).rest())
    return tuple(found)
