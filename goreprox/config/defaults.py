"""Every default and limit of the configuration, once."""

from typing import Final

CLIENT_PORT: Final = 8080
PROVIDER_PORT: Final = 9887
EDGE_PORT: Final = 9888
NATS_PORT: Final = 4222
"""What IANA has assigned to NATS clients."""
SAME_PORT: Final = 0
"""Port of an address that join strings name: the one that is listened on."""
DEFAULT_SERVICE: Final = "default"
DEFAULT_GRACE_S: Final = 60
DEFAULT_DRAIN_S: Final = 30
DEFAULT_MAX_CONNECTIONS: Final = 10_000
DEFAULT_MEMORY_MIB: Final = 256
DEFAULT_LINK_TIMEOUT_S: Final = 6
DEFAULT_DIAL_TIMEOUT_S: Final = 5
DEFAULT_WEIGHT: Final = 1
DEFAULT_WORKERS: Final = 1
DEFAULT_MAX_PEERS: Final = 4096
DEFAULT_QUEUE_TIMEOUT_S: Final = 10
DEFAULT_CHECK_INTERVAL_S: Final = 5
DEFAULT_CHECK_TIMEOUT_S: Final = 2
DEFAULT_CHECK_FAILURES: Final = 3
DEFAULT_CHECK_SUCCESSES: Final = 2
MAX_CHECK_RESULTS: Final = 1000
MIN_RATE_MIB: Final = 0.001
MAX_RATE_MIB: Final = 1e6
DEFAULT_AUTH_HEADER: Final = "X-Goreprox-Auth"
DEFAULT_HEAD_BYTES: Final = 16 * 1024
DEFAULT_HEAD_LINES: Final = 100
MIB: Final = 1 << 20
DAY_S: Final = 86_400.0
MAX_MEMORY_BYTES: Final = 1 << 40
MAX_CONNECTIONS: Final = 1_000_000
# A stream keeps a window of memory / (4 * max_connections) whatever happens: half of the memory is for
# reservations, in two directions. 2 KiB is the least that still moves a request. With the defaults: 256 MiB /
# 40,000 = 6.5 KiB.
MIN_RESERVED_BYTES: Final = 2048
MAX_ENDPOINTS: Final = 64  # addresses of one kind in one process
MAX_RULES: Final = 256  # networks allowed or denied; each new client is compared with all of them
MAX_ROUTES: Final = 10_000
MAX_PEERS: Final = 8192
"""All of them, told to one that reads slowly, fit into half of what a broker keeps for it: 16,384 messages, 16 MiB."""
MAX_ALPN_BYTES: Final = 255  # RFC 7301, 3.1
MAX_CERTIFICATES: Final = 64  # each handshake looks whether their files have changed, a microsecond a file
MAX_WORKERS: Final = 64
MIN_WEIGHT: Final = 0.01
MAX_WEIGHT: Final = 1000.0
# The peer list has 4 KiB for the attributes of a peer; 1 KiB of it is for what is not the services' names.
MAX_SERVICES_BYTES: Final = 3 * 1024
MIN_HEAD_BYTES: Final = 1024
MAX_HEAD_BYTES: Final = 256 * 1024
"""A header section is held whole, beside `--memory`, until its stream has taken it: 10,000 clients with such long ones
hold 2.5 GiB."""
MIN_HEAD_LINES: Final = 10
MAX_HEAD_LINES: Final = 1000
