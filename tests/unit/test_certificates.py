"""Which certificates can be used, how the others are refused, and what a change of the files does."""

import contextlib
import datetime
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509 as x509_of_cryptography
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from goreprox.config.addresses import Scheme
from goreprox.errors import StartError
from goreprox.net import x509
from goreprox.net.certificates import DAY_S, WARN_S, Certificates
from goreprox.net.identity import Identity
from tests.support.tls import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def certificates(authority: Authority) -> Certificates:
    return Certificates([(authority.cert, authority.key)], authority.ca_file)


def test_contexts_are_for_tls_1_2_and_up_and_offer_http_1_1_alone(authority: Authority) -> None:
    context = certificates(authority).context(Scheme.HTTPS)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    for option in (ssl.OP_NO_RENEGOTIATION, ssl.OP_NO_COMPRESSION):
        assert context.options & option
    open_to_all = Certificates([(authority.cert, authority.key)], None).context(Scheme.TLS)
    assert open_to_all.verify_mode is ssl.CERT_NONE


def swap_key(authority: Authority) -> None:
    authority.key.write_bytes(authority.ca.issue_cert("other.test").private_key_pem.bytes())


def lock_key(authority: Authority) -> None:
    key = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    authority.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))


def empty(name: str) -> Callable[[Authority], None]:
    def spoil(authority: Authority) -> None:
        (authority.directory / name).write_bytes(b"")

    return spoil


def remove(name: str) -> Callable[[Authority], None]:
    return lambda authority: (authority.directory / name).unlink()


def damage(authority: Authority) -> None:
    authority.cert.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def damage_key(authority: Authority) -> None:
    authority.key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


def key_for_ssh(authority: Authority) -> None:
    key = Ed25519PrivateKey.generate()
    authority.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("cert.pem"), r"tls-cert \S+cert.pem: No such file or directory; name a PEM file"),
        (remove("key.pem"), r"tls-key \S+key.pem: No such file or directory; name a PEM file"),
        (remove("ca.pem"), r"tls-client-ca \S+ca.pem: No such file or directory; name a PEM file"),
        (empty("cert.pem"), r"tls-cert \S+cert.pem: empty, expected a certificate in PEM form"),
        (empty("key.pem"), r"tls-key \S+key.pem: empty, expected a private key in PEM form"),
        (empty("ca.pem"), r"tls-client-ca \S+ca.pem: empty, expected a certificate in PEM form"),
        (swap_key, r"tls-key \S+key.pem: it is not the key of the certificate in \S+cert.pem"),
        (lambda authority: authority.key.chmod(0o640), r"tls-key (\S+): others may read it; chmod 600 \1$"),
        (lambda authority: authority.cert.chmod(0o664), r"tls-cert (\S+): others may write to it; chmod go-w \1$"),
        (lock_key, r"tls-key \S+key.pem: it has a passphrase; write it without one"),
        (damage, r"tls-cert \S+cert.pem and tls-key \S+key.pem: "),
        (key_for_ssh, r"tls-key \S+key.pem: it is a key for ssh; name the PEM private key of the certificate"),
        (damage_key, r"tls-cert \S+cert.pem and tls-key \S+key.pem: one of them is damaged"),
    ],
)
def test_unusable_certificate_files_are_reported_in_one_line(
    authority: Authority, spoil: Callable[[Authority], None], message: str
) -> None:
    spoil(authority)
    with pytest.raises(StartError, match=message) as error:
        certificates(authority)
    assert "\n" not in str(error.value)


def test_changed_certificates_are_read_again_and_unusable_ones_ignored(authority: Authority, lines: list[str]) -> None:
    read = certificates(authority)
    first = read.context(Scheme.TLS)
    assert read.context(Scheme.TLS) is first
    swap_key(authority)
    assert [read.context(Scheme.TLS) for _ in range(3)] == [first] * 3
    assert ["stays in use" in line for line in lines] == [True]
    authority.renew()
    second = read.context(Scheme.TLS)
    assert second is not first
    assert read.context(Scheme.TLS) is second
    assert "read again" in lines[-1]
    authority.ca_file.unlink()
    assert read.context(Scheme.TLS) is second


def issue(authority: Authority, expires: datetime.datetime) -> None:
    issued = authority.ca.issue_cert("a.test", not_after=expires)
    authority.cert.write_bytes(b"# comment \xe9\n" + b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    authority.key.write_bytes(issued.private_key_pem.bytes())


@pytest.mark.parametrize("year", [2001, 2049, 2050, 2051, 9999])
def test_the_expiry_is_that_in_the_certificate(authority: Authority, year: int) -> None:
    expires = datetime.datetime(year, 2, 28, 13, 14, 15, tzinfo=datetime.UTC)
    issue(authority, expires)
    assert x509.expiry(authority.cert.read_text(encoding="latin-1")) == expires.timestamp()
    first = authority.cert.read_text(encoding="latin-1")
    issue(authority, sooner := datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
    both = first + authority.cert.read_text(encoding="latin-1")
    assert x509.expiry(both) == sooner.timestamp()


@pytest.mark.parametrize(
    ("days", "text"), [(-1.0, "it expired at "), (WARN_S / DAY_S - 1, "it expires at "), (WARN_S / DAY_S + 1, None)]
)
def test_a_certificate_near_or_past_its_expiry_is_warned_of(
    authority: Authority, warnings: list[str], days: float, text: str | None
) -> None:
    expires = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)).replace(microsecond=0)
    issue(authority, expires)
    read = certificates(authority)
    read.context(Scheme.TLS)
    if text is None:
        assert not warnings
        return
    (line,) = warnings
    assert text + expires.isoformat(" ", "minutes") in line


def test_a_running_process_warns_once_a_day_before_the_expiry(
    authority: Authority, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    issue(authority, now + datetime.timedelta(days=100))
    read = certificates(authority)

    def told(day: float) -> int:
        monkeypatch.setattr(time, "time", lambda: now.timestamp() + day * DAY_S)
        for _ in range(3):
            read.context(Scheme.TLS)
        return len(warnings)

    assert [told(day) for day in (50, 85, 87, 87.5, 88.5, 101)] == [0, 0, 1, 1, 2, 3]
    assert "it expired at" in warnings[-1]


def test_the_name_of_a_client_is_the_first_alternative_one_or_the_common_one() -> None:
    subject = ((("countryName", "CH"),), (("commonName", "alice"),))
    assert (
        Identity.of({"subject": subject, "subjectAltName": (("DNS", "a.test"), ("DNS", "b.test"))}, b"").name
        == "a.test"
    )
    assert Identity.of({"subject": subject}, b"").name == "alice"
    assert Identity.of({"subject": subject[:1]}, b"").name is None
    assert Identity.of(None, b"").name is None


HOSTS = {
    "a.test": "first",
    "A.Test": "first",
    "b.test": "second",
    "c.test": "wildcard",
    "b.c.test": "first",
    "test": "first",
    "": "first",
    "*.test": "wildcard",
}
"""Who serves a name, of a certificate for a.test, one for b.test and another name, and one for *.test."""


@pytest.fixture
def several(authority: Authority) -> Certificates:
    pairs = []
    for name, hosts in (("first", ["a.test"]), ("second", ["x.example", "b.test"]), ("wildcard", ["*.test", "B.test"])):
        issued = authority.ca.issue_cert(*hosts)
        cert, key = authority.directory / f"{name}.pem", authority.directory / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        key.chmod(0o600)
        pairs.append((cert, key))
    return Certificates(pairs, None)


@pytest.mark.parametrize("host", HOSTS)
def test_the_certificate_is_that_of_the_host_then_of_a_wildcard_then_the_first(
    several: Certificates, host: str
) -> None:
    assert several.for_host(host).file.stem == HOSTS[host]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_clients_are_shown_the_certificate_of_the_name_that_they_ask_for(
    authority: Authority, several: Certificates, version: ssl.TLSVersion
) -> None:
    client = authority.trusting()
    client.minimum_version = client.maximum_version = version

    def shown(host: str | None) -> set[str]:
        client.check_hostname = False
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = several.context(Scheme.HTTPS).wrap_bio(to_server, to_client, server_side=True)
        ours = client.wrap_bio(to_client, to_server, server_hostname=host)
        for _ in range(3):
            for end in (ours, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        der = ours.getpeercert(binary_form=True)
        assert der is not None
        return set(x509.host_names(ssl.DER_cert_to_PEM_cert(der)))

    assert shown("a.test") == shown("elsewhere.example") == shown(None) == {"a.test"}
    assert shown("B.test") == {"x.example", "b.test"}
    assert shown("c.test") == {"*.test", "b.test"}


def test_a_certificate_that_is_for_other_names_once_it_is_read_again_is_chosen_by_these(
    authority: Authority, several: Certificates
) -> None:
    issued = authority.ca.issue_cert("moved.test")
    second = several.all[1].file
    second.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    second.with_suffix(".key").write_bytes(issued.private_key_pem.bytes())
    assert several.for_host("moved.test").file == second
    assert several.for_host("b.test").file.stem == "wildcard"


def test_a_certificate_without_alternative_names_is_for_none() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509_of_cryptography.Name([x509_of_cryptography.NameAttribute(NameOID.COMMON_NAME, "a.test")])
    builder = x509_of_cryptography.CertificateBuilder(name, name, key.public_key(), 1)
    now = datetime.datetime.now(datetime.UTC)
    made = builder.not_valid_before(now).not_valid_after(now).sign(key, hashes.SHA256())
    assert x509.host_names(made.public_bytes(Encoding.PEM).decode()) == frozenset()
