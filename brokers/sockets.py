"""ZeroMQ sockets with the options of brokers and links."""

import contextlib
import ctypes
import os
import random
import secrets
from typing import Final

import zmq

from brokers.carrier import Timings
from brokers.envelope import MAX_FRAME
from brokers.keys import KeyPair
from brokers.peers import Role

HIGH_WATER: Final = 1000
"""Messages in a pipe to a peer. Sessions keep at most 32 MiB in flight, which bounds the bytes."""
BROKER_HANDSHAKE_S: Final = 5.0
"""How long a broker waits for a handshake."""
PORT_DESCRIPTORS: Final = 5
"""File descriptors that opening a port takes: the ROUTER's, two of its monitor, the listening socket, and one to look
addresses up."""
_OPTIONS: Final[dict[int, int]] = {
    zmq.IPV6: 1,
    zmq.LINGER: 0,
    zmq.MAXMSGSIZE: MAX_FRAME,
    zmq.SNDHWM: HIGH_WATER,
    zmq.RCVHWM: 0,  # `brokers.connections` says why neither pipes may fill up nor heartbeats be sent
}


def router_socket(context: "zmq.Context[zmq.Socket[bytes]]", role: Role, keys: KeyPair | None) -> "zmq.Socket[bytes]":
    """Return a broker's socket for peers of `role`, not bound yet; with `keys`, it demands theirs.

    Raises:
        OSError: EMFILE, there are too few descriptors to bind it (see `ensure_descriptors`).
        zmq.ZMQError: there can be no more sockets.
    """
    ensure_descriptors()
    socket = context.socket(zmq.ROUTER)
    _set(
        socket,
        {
            zmq.ROUTER_MANDATORY: 1,
            zmq.ROUTER_HANDOVER: 1,
            zmq.HANDSHAKE_IVL: int(BROKER_HANDSHAKE_S * 1000),
            zmq.BACKLOG: 1024,
        },
    )
    if keys is not None:
        secure_broker(socket, keys, role)
    return socket


def dealer_socket(
    context: "zmq.Context[zmq.Socket[bytes]]", routing_id: bytes, timings: Timings, *, handshake_s: float
) -> "zmq.Socket[bytes]":
    """Return a link's socket, not connected yet."""
    socket = context.socket(zmq.DEALER)
    _set(
        socket,
        {
            zmq.RECONNECT_IVL: int(timings.reconnect_min_s * 1000 * random.uniform(1.0, 1.5)),
            zmq.RECONNECT_IVL_MAX: int(timings.reconnect_max_s * 1000),
            zmq.CONNECT_TIMEOUT: int(timings.connect_timeout_s * 1000),
            zmq.HANDSHAKE_IVL: int(handshake_s * 1000),
        },
    )
    socket.setsockopt(zmq.ROUTING_ID, routing_id)
    return socket


def _set(socket: "zmq.Socket[bytes]", options: dict[int, int]) -> None:
    for option, value in (_OPTIONS | options).items():
        socket.setsockopt(option, value)


def secure_broker(socket: "zmq.Socket[bytes]", keys: KeyPair, role: Role) -> None:
    """Make a ROUTER demand keys of peers of `role`; call it before the socket is bound.

    ZAP_ENFORCE_DOMAIN matters: without it, libzmq accepts any key while there is no ZAP handler.
    """
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, role.value)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def secure_link(socket: "zmq.Socket[bytes]", keys: KeyPair, broker: bytes) -> None:
    """Make a DEALER prove its key and demand the key `broker`, in all later calls of `connect`."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, broker)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)


def seed_routing_ids() -> None:
    """Make unpredictable which routing ids ROUTER sockets created from now on assign to peers that choose none.

    libzmq counts up from a number of `rand`, which it never seeds (random.cpp of 4.3.5), and a peer may choose any id.
    If it has chosen the next one, libzmq aborts the process (`add_out_pipe` in socket_base.cpp): two connections are
    enough for a peer that knows the number; without it, one that holds 1,000 ids needs two million more.
    """
    seed = ctypes.CDLL(None).srand
    seed.argtypes, seed.restype = [ctypes.c_uint], None
    seed(secrets.randbits(32))


def ensure_descriptors() -> None:
    """Check that enough file descriptors are left to open a port: without one libzmq aborts (ip_resolver.cpp).

    Raises:
        OSError: EMFILE, there are too few.
    """
    with contextlib.ExitStack() as taken:
        for _ in range(PORT_DESCRIPTORS):
            taken.callback(os.close, os.open(os.devnull, os.O_RDONLY))
