"""The options of ZeroMQ sockets."""

import contextlib
import ctypes
import os
import secrets

import zmq

from brokers.keys import KeyPair
from brokers.peers import Role

PORT_DESCRIPTORS = 5
"""What it takes to open a port: the ROUTER's, two of its monitor, what listens, and one to look addresses up."""


def secure_broker(socket: "zmq.Socket[bytes]", keys: KeyPair, role: Role) -> None:
    """Make a ROUTER demand keys of peers of `role`; to be called before it is bound."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, role.value)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def draw_routing_ids() -> None:
    """Let nobody guess which routing ids ROUTER sockets made from now on give to peers without one.

    They count up from a number of `rand`, which libzmq never seeds (random.cpp of 4.3.5), and a peer may claim any id.
    Where it has claimed the next one, libzmq aborts the process (`add_out_pipe` in socket_base.cpp): two connections
    are enough for somebody who knows the number; without it, one that holds 1,000 ids needs two million more.
    """
    seed = ctypes.CDLL(None).srand
    seed.argtypes, seed.restype = [ctypes.c_uint], None
    seed(secrets.randbits(32))


def secure_link(socket: "zmq.Socket[bytes]", keys: KeyPair, broker: bytes) -> None:
    """Make a DEALER prove its key and demand that of `broker`; it counts for later calls of `connect`."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, broker)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)


def see_descriptors() -> None:
    """See that a port can be opened: libzmq ends the process where it cannot ask for a socket (ip_resolver.cpp).

    Raises:
        OSError: EMFILE, there are too few descriptors.
    """
    with contextlib.ExitStack() as taken:
        for _ in range(PORT_DESCRIPTORS):
            taken.callback(os.close, os.open(os.devnull, os.O_RDONLY))
