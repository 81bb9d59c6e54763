"""What the log and the feed say of peers and links; each line has its `event` and the name of the peer as fields."""

from loguru import logger

from brokers import Carrier, LimitedLog, PeerInfo
from goreprox.process.feed import Feed
from goreprox.process.log import counted
from goreprox.protocol.limits import VERSION, VERSION_LEAST
from goreprox.protocol.notices import Kind, Notice
from goreprox.tunnel.peer import Peer


def log_incompatible(log: LimitedLog, info: PeerInfo) -> None:
    """Log that there is no version of the session that both sides speak."""
    name, theirs = info.name, info.attributes.get("protocol")
    text = f"{name.role} {name.name} speaks protocol versions {theirs}, we speak {VERSION_LEAST} to {VERSION}"
    log.say("peer_incompatible", f"{text}: upgrade the older one", peer=name.name)


class PeerLog:
    """Tells of the peers and links of a process."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def _tell(self, peer: Peer, event: str, text: str, level: str = "INFO", **fields: object) -> None:
        fields = {"peer": peer.info.name.name, "address": peer.info.address, **fields}
        logger.bind(event=event, **fields).log(level, "{}", text)
        self._feed.add(event, text, fields)

    def link_up(self, carrier: Carrier) -> None:
        """Tell that a broker is connected. It logs that itself."""
        self._feed.add("link_up", f"connected to the broker {carrier.label}", {"broker": carrier.label})

    def link_lost(self, carrier: Carrier, reason: str) -> None:
        """Tell that a broker is out of reach. It logs that itself."""
        text = f"lost the connection to the broker {carrier.label}: {reason}"
        self._feed.add("link_lost", text, {"broker": carrier.label, "reason": reason})

    def restarted(self, peer: Peer) -> None:
        """Tell that a successor has proven the death of a process, if it had streams."""
        if peer.session.streams:
            text = f"{peer.title} died and was restarted: resetting {_streams(peer)}"
            self._tell(peer, "peer_restarted", text, "WARNING", streams=len(peer.session.streams))

    def revoked(self, peer: Peer) -> None:
        """Tell that one of the two keys is no longer valid."""
        text = f"the key of {peer.title}, or our own, was revoked: resetting {_streams(peer)}"
        self._tell(peer, "peer_revoked", text, "WARNING", streams=len(peer.session.streams))

    def lost(self, peer: Peer, reason: str) -> None:
        """Tell that the last path to a peer is gone."""
        text = (
            f"lost the connection to {peer.title} ({reason}): keeping {_streams(peer)} for up to "
            f"{peer.session.epochs.grace_s:g} s"
        )
        self._tell(peer, "peer_down", text, reason=reason, streams=len(peer.session.streams))

    def notice(self, peer: Peer, notice: Notice) -> None:
        """Tell what a session says of itself."""
        session = peer.session
        match notice.kind:
            case Kind.ESTABLISHED if session.epochs.moved:
                self._moved(peer)
            case Kind.ESTABLISHED if not session.counters.outages:
                self._tell(peer, "peer_up", f"connected to {peer.title}")
            case Kind.ESTABLISHED:
                self._resumed(peer)
            case Kind.GOODBYE:
                self._tell(peer, "peer_left", f"{peer.title} has left: {notice.reason}", reason=notice.reason)
            case Kind.DRAINING:
                level = "INFO" if session.streams else "DEBUG"
                self._tell(peer, "peer_draining", f"{peer.title} is draining: it gets no new streams", level)
            case Kind.FAILED:
                text = f"the session with {peer.title} failed, resetting its streams: {notice.reason}"
                self._tell(peer, "peer_failed", text, "WARNING", reason=notice.reason)

    def _moved(self, peer: Peer) -> None:
        broker = next((carrier.label for carrier in peer.epochs if peer.session.uses(carrier)), None)
        text = f"moved the session with {peer.title}, which has {_streams(peer)}, to the broker {broker}"
        self._tell(peer, "peer_moved", text, broker=broker, streams=len(peer.session.streams))

    def _resumed(self, peer: Peer) -> None:
        session = peer.session
        resumption, outages = session.multiplexer.resumption, session.counters.outages
        assert resumption.outage_s is not None
        self._tell(
            peer,
            "peer_up",
            f"connected to {peer.title} again after {resumption.outage_s:.1f} s: {_streams(peer)} resumed, "
            f"{counted(resumption.replayed_bytes, 'byte')} sent again, {counted(outages, 'outage')} so far",
            outages=outages,
            outage_s=round(resumption.outage_s, 3),
            replayed_bytes=resumption.replayed_bytes,
            streams=len(session.streams),
        )


def _streams(peer: Peer) -> str:
    return counted(len(peer.session.streams), "stream")
