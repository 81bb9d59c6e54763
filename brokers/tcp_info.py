"""What the kernel says of a TCP connection: TCP_INFO (tcp(7), `struct tcp_info` of linux/tcp.h). Nothing on macOS."""

import socket
import struct
from typing import Final

from brokers.carrier import LinkCondition

_RECEIVED: Final = struct.Struct("128xQ")
"""tcpi_bytes_received, since Linux 4.1."""
_SENDING: Final = struct.Struct("68xI72xI")
"""tcpi_rtt in microseconds; tcpi_notsent_bytes, since Linux 4.6."""


def received_bytes(sock: socket.socket) -> int:
    """Return how many bytes have arrived; 0 where the kernel does not say."""
    found = _read(sock, _RECEIVED)
    return int(found[0]) if found is not None else 0


def link_condition(sock: socket.socket) -> LinkCondition | None:
    """Return the condition of the sending side; None where the kernel does not say."""
    found = _read(sock, _SENDING)
    return LinkCondition(int(found[1]), int(found[0]) / 1e6) if found is not None else None


def _read(sock: socket.socket, layout: struct.Struct) -> tuple[int, ...] | None:
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, layout.size)
    except OSError:  # closed
        return None
    return layout.unpack(info) if len(info) == layout.size else None
