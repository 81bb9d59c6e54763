"""When certificates are asked for, what is kept of them, and what challenges are answered."""

import math
import os
import ssl
from pathlib import Path

import pytest

from goreprox.acme.schedule import (
    FORGET_S,
    LIMITED_S,
    RETRY_AFTER_MAX_S,
    RETRY_MAX_S,
    WEEK_S,
    Choice,
    Ledger,
    Wanted,
)
from goreprox.acme.store import Store, objection
from goreprox.config.addresses import Scheme
from goreprox.errors import StartError
from goreprox.net import x509
from goreprox.net.certificates import ACME_TLS, Certificates, Proofs
from goreprox.net.client_hello import ClientHello
from goreprox.process.files import write_secret
from tests.support.tls import NAME, Authority

DAY_S = 86_400.0
NOW = 1_800_000_000.0
ROUTE = Wanted("a.test")
NAMES = [Wanted(f"n{number}.test", "laptop") for number in range(3)]
URL = "https://ca.test/directory"


def issued(ledger: Ledger, host: str, *, days: float = 90, now: float = NOW) -> Ledger:
    return ledger.succeeded(host, now=now, issued_at=now, expires_at=now + days * DAY_S)


def due(ledger: Ledger, wanted: Wanted = ROUTE, *, has: bool = False, budget: int = 2, now: float = NOW) -> float:
    return ledger.due_at(wanted, has=has, budget=budget, now=now)


def test_a_host_is_asked_for_when_it_is_known_and_renewed_at_a_third_of_its_life() -> None:
    assert due(Ledger()) == 0
    ledger = issued(Ledger(), "a.test")
    assert due(ledger, has=True) == NOW + 60 * DAY_S
    assert due(issued(Ledger(), "a.test", days=6), has=True) == NOW + 4 * DAY_S
    assert due(ledger) == 0, "its file was removed"


def test_a_clock_that_is_ahead_makes_no_more_than_three_orders_a_life() -> None:
    ledger = Ledger().succeeded("a.test", now=NOW, issued_at=NOW - 900 * DAY_S, expires_at=NOW - 810 * DAY_S)
    assert due(ledger, has=True) == NOW + 30 * DAY_S


def test_failures_are_retried_ever_later_and_at_least_four_times_a_day() -> None:
    ledger, now, pauses = Ledger(), NOW, []
    for _ in range(40):
        ledger = ledger.failed("a.test", "dns: none; add one", now=now)
        pauses.append(due(ledger) - now)
        now += pauses[-1]
    assert pauses[:5] == [60, 240, 960, 3840, 15_360]
    assert set(pauses[5:]) == {RETRY_MAX_S}
    assert due(ledger, Wanted("b.test")) == 0, "others do not wait"
    assert due(issued(ledger, "a.test", now=now), has=True) == now + 60 * DAY_S
    assert ledger.hosts["a.test"].problem == "dns: none; add one"


def test_a_failed_renewal_is_retried_and_the_certificate_stays() -> None:
    now = NOW + 60 * DAY_S
    ledger = issued(Ledger(), "a.test").failed("a.test", "no", now=now)
    assert due(ledger, has=True) == now + 60
    assert ledger.hosts["a.test"].expires_at == NOW + 90 * DAY_S


def test_the_authority_says_when_to_retry() -> None:
    ledger = Ledger().failed("a.test", "no", now=NOW, retry_after_s=7200)
    assert due(ledger) == NOW + 7200
    assert due(Ledger().failed("a.test", "no", now=NOW, retry_after_s=1e9)) == NOW + RETRY_AFTER_MAX_S
    assert due(ledger, Wanted("b.test")) == 0


def test_after_too_many_requests_all_hosts_wait() -> None:
    ledger = Ledger().failed("a.test", "no", now=NOW, limited=True)
    assert due(ledger) == due(ledger, Wanted("b.test")) == NOW + LIMITED_S
    ledger = Ledger().failed("a.test", "no", now=NOW, retry_after_s=2 * DAY_S, limited=True)
    assert (due(ledger), due(ledger, Wanted("b.test"))) == (NOW + 2 * DAY_S, NOW + LIMITED_S)
    assert due(issued(ledger, "b.test"), Wanted("b.test"), has=True) > NOW + LIMITED_S


def test_a_key_gets_so_many_new_certificates_in_a_week() -> None:
    ledger = Ledger()
    for number, wanted in enumerate(NAMES[:2]):
        assert due(ledger, wanted) == 0
        ledger = ledger.begun(wanted, now=NOW + number)
    now = NOW + 2
    assert due(ledger, NAMES[2], now=now) == NOW + WEEK_S
    assert due(ledger, NAMES[2], budget=1, now=now) == NOW + 1 + WEEK_S
    assert due(ledger, NAMES[0], now=now) == 0, "a host that counts already may be retried"
    assert due(ledger, Wanted("n2.test", "other"), now=now) == 0
    assert due(ledger, Wanted("n2.test"), now=now) == 0, "routes need no budget"
    assert due(ledger, NAMES[2], now=NOW + WEEK_S) == 0
    assert due(Ledger(), NAMES[0], budget=0) == math.inf
    renewed = issued(ledger, "n2.test")
    assert due(renewed, NAMES[2], has=True, now=now) == NOW + 60 * DAY_S, "a renewal is not new"


def test_what_is_due_first_is_chosen_and_routes_before_published_names() -> None:
    ledger = issued(Ledger(), "old.test", days=30, now=NOW - 25 * DAY_S)
    hosts = [*NAMES, Wanted("z.test"), Wanted("old.test")]

    def choose(ledger: Ledger, hosts: list[Wanted], budget: int = 1) -> Choice:
        return ledger.choose(hosts, has=lambda host: host == "old.test", budget=budget, now=NOW)

    assert choose(ledger, hosts) == (0, Wanted("z.test"))
    assert choose(ledger, NAMES) == (0, NAMES[0])
    assert choose(ledger, [Wanted("old.test")]) == (NOW - 5 * DAY_S, Wanted("old.test"))
    assert choose(ledger, []) == choose(ledger, NAMES, budget=0) == (math.inf, None)


def test_what_is_long_over_is_forgotten() -> None:
    ledger = issued(Ledger(), "a.test").failed("b.test", "no", now=NOW).begun(NAMES[0], now=NOW)
    later = NOW + 90 * DAY_S + FORGET_S
    assert set(ledger.begun(ROUTE, now=NOW + FORGET_S + 3600).hosts) == {"a.test"}
    assert ledger.begun(ROUTE, now=later + 1) == Ledger()


def test_a_ledger_is_read_as_it_was_written() -> None:
    ledger = issued(Ledger(), "a.test").begun(NAMES[0], now=NOW).failed("b.test", 'ü "', now=NOW, limited=True)
    assert Ledger.parse(ledger.text) == ledger
    for text in ("", "[]", "{}", '{"hosts": {"a": 1}, "asked": {}, "paused_until": 0}', "[" * 100_000):
        with pytest.raises(ValueError, match=r"expected hosts|Expecting value"):
            Ledger.parse(text)


# -- the store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state", URL)
    made.prepare()
    return made


def test_the_store_is_for_this_user_alone(store: Store) -> None:
    store.respond("token", "token.print")
    write_secret(store.ledger_file, Ledger().text)
    lock = store.lock()
    assert lock is not None
    os.close(lock)
    for path in (store.directory.parents[1]).rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_each_authority_has_a_store_of_its_own(tmp_path: Path) -> None:
    staging = Store(tmp_path, "https://ca.test/staging")
    assert staging.directory != Store(tmp_path, URL).directory
    assert staging.directory.name.startswith("ca.test-")


def test_one_process_orders_at_a_time(store: Store) -> None:
    first = store.lock()
    assert first is not None
    assert store.lock() is None
    os.close(first)
    second = store.lock()
    assert second is not None
    os.close(second)


def test_challenges_are_answered_as_long_as_they_are_open(store: Store) -> None:
    store.respond("A-_z9", "A-_z9.print")
    assert store.response(b"A-_z9") == b"A-_z9.print"
    for token in (b"", b"other", b"../ledger.json", b"a/b", b"\xff", b"a" * 129, b"A-_z9?x"):
        assert store.response(token) is None
    with pytest.raises(ValueError, match="malformed token"):
        store.respond("../x", "")
    store.forget_challenges()
    assert store.response(b"A-_z9") is None


def test_certificates_that_nobody_renews_are_removed(store: Store) -> None:
    for host in ("kept.test", "old.test", "new.test"):
        write_secret(store.certificate(host), "pem")
    for host in ("kept.test", "old.test"):
        os.utime(store.certificate(host), (1, 1))
    store.forget_certificates(keep={"kept.test"}, before=2)
    assert [store.has(host) for host in ("kept.test", "old.test", "new.test")] == [True, False, True]


def test_a_malformed_ledger_is_named_with_what_to_do(store: Store) -> None:
    assert store.ledger() == Ledger()
    store.ledger_file.write_text("{")
    store.ledger_file.chmod(0o600)
    with pytest.raises(StartError, match=r"ledger\.json: .*remove it"):
        store.ledger()


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("*.a.test", "dns-01"),
        ("*", "dns-01"),
        ("192.0.2.1", "it is an address"),
        ("[2001:db8::1]", "it is an address"),
        ("localhost", "no public authority"),
        ("under_score.test", "no public authority"),
        (f"{'a' * 64}.test", "no public authority"),
        (".".join(["a" * 60] * 4 + ["test"]), "no public authority"),
        ("xn--bcher-kva.example", None),
        ("a-b.c.example", None),
    ],
)
def test_hosts_without_certificates_are_told_why(host: str, why: str | None) -> None:
    found = objection(host)
    assert found is None if why is None else why in (found or "")


# -- at handshakes


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def keep(path: Path, authority: Authority, *names: str) -> None:
    """Keep a certificate of these names with its key."""
    leaf = authority.ca.issue_cert(*names)
    pem = b"".join(blob.bytes() for blob in (leaf.private_key_pem, *leaf.cert_chain_pems))
    write_secret(path, pem.decode(), replace=True)


class Handshake:
    """What a server with these certificates shows to clients, in memory."""

    def __init__(self, certificates: Certificates, authority: Authority) -> None:
        self._certificates = certificates
        self._trusting = authority.trusting()
        self._trusting.check_hostname = False

    def shown(self, host: str | None) -> set[str]:
        """Return the names in the certificate; ssl.SSLError if the client is rejected."""
        there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self._trusting.wrap_bio(here, there, server_hostname=host)
        server = self._certificates.context(Scheme.HTTPS).wrap_bio(there, here, server_side=True)
        for _ in range(3):
            for end in (client, server):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        der = client.getpeercert(binary_form=True)
        assert der is not None
        return set(x509.host_names(ssl.DER_cert_to_PEM_cert(der)))


def test_stored_certificates_are_for_their_hosts_alone(store: Store, authority: Authority) -> None:
    known = {"a.test"}
    certificates = Certificates([], None, stored=lambda host: store.certificate(host) if host in known else None)
    handshake = Handshake(certificates, authority)
    keep(store.certificate("b.test"), authority, "b.test")
    for host in ("a.test", "b.test", None):
        with pytest.raises(ssl.SSLError, match="CALLBACK_FAILED"):
            handshake.shown(host)
    keep(store.certificate("a.test"), authority, "a.test")
    assert handshake.shown("A.test") == {"a.test"}
    keep(store.certificate("a.test"), authority, "a.test", "again.test")
    assert handshake.shown("a.test") == {"a.test", "again.test"}, "it was renewed"
    store.certificate("a.test").write_text("damaged")
    assert handshake.shown("a.test") == {"a.test", "again.test"}, "the old one serves"
    known.clear()
    with pytest.raises(ssl.SSLError):
        handshake.shown("a.test")


def test_a_stored_certificate_comes_after_one_of_the_host_and_before_wildcards(
    store: Store, authority: Authority, tmp_path: Path
) -> None:
    wild = tmp_path / "wild.pem"
    keep(wild, authority, "*.test")
    pairs = [(authority.cert, authority.key), (wild, wild)]
    certificates = Certificates(pairs, None, stored=store.certificate)
    handshake = Handshake(certificates, authority)
    assert handshake.shown("a.test") == {"*.test"}
    for host in ("a.test", NAME):
        keep(store.certificate(host), authority, host, "stored.test")
    assert handshake.shown("a.test") == {"a.test", "stored.test"}
    assert NAME in handshake.shown(NAME)
    assert "stored.test" not in handshake.shown(NAME)
    assert NAME in handshake.shown(None)
    assert [certificates.covers(host) for host in (NAME, "b.test", "*.test", "a.b.test")] == [True, True, True, False]


def test_only_who_speaks_acme_alone_gets_the_answer_to_a_challenge(store: Store, authority: Authority) -> None:
    keep(store.proof("a.test"), authority, "a.test")
    proofs = Proofs(lambda host: store.proof(host) if store.proof(host).exists() else None)

    def asked(host: str | None, *protocols: bytes) -> bool:
        return proofs.context(ClientHello(host, protocols, has_ech=False)) is not None

    assert asked("a.test", ACME_TLS)
    for host, protocols in (
        ("a.test", ()),
        ("a.test", (b"http/1.1",)),
        ("a.test", (ACME_TLS, b"http/1.1")),
        ("b.test", (ACME_TLS,)),
        (None, (ACME_TLS,)),
    ):
        assert not asked(host, *protocols)
