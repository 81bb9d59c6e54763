"""A process at the other end: what the peer list says of it, which carriers reach it, and our session with it."""

import asyncio
from dataclasses import dataclass, field

from brokers import Carrier, PeerInfo
from goreprox.protocol.events import Served
from goreprox.protocol.limits import VERSION, VERSION_LEAST
from goreprox.protocol.session import Session
from goreprox.tunnel.attributes import machine_of, process_of, services_of


def common_version(versions: object) -> int | None:
    """Return the session version that we and a peer write, the lower of our newest ones; None if one is too old.

    `versions` is what the peer announces: the oldest and the newest that it understands.
    """
    match versions:
        case [int(least), int(most)] if max(least, VERSION_LEAST) <= min(most, VERSION):
            return min(most, VERSION)
    return None


@dataclass(slots=True, eq=False)
class Peer:
    """Owned by the driver."""

    info: PeerInfo
    session: Session
    epochs: dict[Carrier, int] = field(default_factory=dict)
    """The carriers that reach it, each with the fabric's epoch there."""
    granted: dict[Carrier, object] = field(default_factory=dict)
    """What the brokers behind them say of its key, the last time that each did."""
    timer: asyncio.TimerHandle | None = None
    due: float = float("inf")
    """When `timer` is to look at the session."""
    up_at: float | None = None
    """When its streams last began to flow."""
    gone: bool = False
    """It has said goodbye, or the driver has forgotten it: no session with it will resume."""
    revoked: bool = False
    """Its key was revoked."""
    served: dict[str, Served] = field(default_factory=dict)
    """Where this edge's clients find published names of ours, by service."""
    id: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.info.name.id

    @property
    def services(self) -> list[str]:
        """What it offers (a provider), or accepts clients for (an edge)."""
        return services_of(self.info.attributes)

    @property
    def title(self) -> str:
        """Its process, name, machine if that has another name, network address if known, and id, for log lines."""
        name, attributes = self.info.name, self.info.attributes
        process = process_of(attributes) or str(name.role)
        machine = machine_of(attributes)
        where = f" on {machine}" if machine not in (None, name.name) else ""
        at = f" at {self.info.address}" if self.info.address is not None else ""
        return f"{process} {name.name}{where}{at} ({name.incarnation.hex()[:8]})"

    @property
    def available(self) -> bool:
        """Whether it accepts new streams now."""
        return self.session.established and not self.session.peer_draining and not self.gone
