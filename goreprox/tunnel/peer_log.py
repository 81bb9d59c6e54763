"""What the log says of peers; each line has its `event` and the name of the peer as fields."""

from loguru import logger

from brokers import LimitedLog, PeerInfo
from goreprox.process.log import counted
from goreprox.protocol.limits import VERSION, VERSION_LEAST
from goreprox.protocol.notices import Kind, Notice
from goreprox.tunnel.peer import Peer


def log_incompatible(log: LimitedLog, info: PeerInfo) -> None:
    """Log that there is no version of the session that both sides speak."""
    name, theirs = info.name, info.attributes.get("protocol")
    text = f"{name.role} {name.name} speaks protocol versions {theirs}, we speak {VERSION_LEAST} to {VERSION}"
    log.say("peer_incompatible", f"{text}: upgrade the older one", peer=name.name)


def log_restarted(peer: Peer) -> None:
    """Log that a successor has proven the death of a process, if it had streams."""
    if peer.session.streams:
        logger.bind(event="peer_restarted", peer=peer.info.name.name).warning(
            "{} died and was restarted: resetting {}", peer.title, _streams(peer)
        )


def log_revoked(peer: Peer) -> None:
    """Log that one of the two keys is no longer valid."""
    logger.bind(event="peer_revoked", peer=peer.info.name.name).warning(
        "the key of {}, or our own, was revoked: resetting {}", peer.title, _streams(peer)
    )


def log_lost(peer: Peer, reason: str) -> None:
    """Log that the last path to a peer is gone."""
    logger.bind(event="peer_down", peer=peer.info.name.name).info(
        "lost the connection to {} ({}): keeping {} for up to {:g} s",
        peer.title,
        reason,
        _streams(peer),
        peer.session.epochs.grace_s,
    )


def log_notice(peer: Peer, notice: Notice) -> None:
    """Log what a session says of itself."""
    session, log = peer.session, logger.bind(peer=peer.info.name.name, address=peer.info.address)
    match notice.kind:
        case Kind.ESTABLISHED if not session.counters.outages:
            log.bind(event="peer_up").info("connected to {}", peer.title)
        case Kind.ESTABLISHED:
            log.bind(event="peer_up", outages=session.counters.outages).info(
                "connected to {} again: {} resumed, {} so far",
                peer.title,
                _streams(peer),
                counted(session.counters.outages, "outage"),
            )
        case Kind.GOODBYE:
            log.bind(event="peer_left").info("{} has left: {}", peer.title, notice.reason)
        case Kind.DRAINING:
            level = "INFO" if session.streams else "DEBUG"
            log.bind(event="peer_draining").log(level, "{} is draining: it gets no new streams", peer.title)
        case Kind.FAILED:
            log.bind(event="peer_failed").warning(
                "the session with {} failed, resetting its streams: {}", peer.title, notice.reason
            )


def _streams(peer: Peer) -> str:
    return counted(len(peer.session.streams), "stream")
