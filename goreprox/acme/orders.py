"""Orders one certificate: a process of its own, since all of this blocks, and the library needs 40 MiB.

It gets a `Job` as JSON on standard input, has the lock of the store among its descriptors, and prints an `Outcome` as
JSON. It may be killed at any moment: files are written whole, and challenges that stay are removed by the next one.
"""

import datetime
import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from acme import challenges, crypto_util, errors, messages
from acme.client import ClientNetwork, ClientV2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC

from goreprox import __version__
from goreprox.acme.schedule import FORGET_S, Ledger, Wanted
from goreprox.acme.store import MAX_PEM_BYTES, Store
from goreprox.errors import StartError
from goreprox.process.files import write_secret
from goreprox.process.log import quoted

DEADLINE_S: Final = 240.0
"""For validation and issue, which mostly take a few seconds."""
LIFE_S: Final = 300
"""After this time the process ends, whatever it is doing."""
REQUEST_S: Final = 30
NONCES: Final = 10
"""Attempts of a request whose nonce is not accepted (RFC 8555, 6.5)."""
_ACME_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_OCTET_STRING: Final = 4
_MAX_CAUSE: Final = 300
"""Characters of what an authority says."""

_ALONE: Final = "another server responds there: let all A and AAAA records of the host lead to this edge alone"
_STEPS: Final = {
    "dns": "let an A or AAAA record of the host lead to this machine",
    "connection": "let ports 80 and 443 of the host lead to this edge, from everywhere",
    "unauthorized": _ALONE,
    "incorrectResponse": _ALONE,
    "tls": "something before this edge ends TLS: let port 443 lead to it directly, or open http:// at port 80",
    "caa": "let a CAA record of the host allow this authority, or choose another one by --acme-directory",
    "rateLimited": "wait, and ask for fewer names",
    "rejectedIdentifier": "give a certificate for it by --tls-cert",
    "externalAccountRequired": "choose an authority that needs no account of its own by --acme-directory",
    "invalidContact": "give another address of mail by --acme",
    "unsupportedContact": "give another address of mail by --acme",
}
"""What to do about errors of an authority, by their types (RFC 8555, 6.7)."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to order."""

    state_dir: str
    directory: str
    ca: str | None
    email: str | None
    host: str
    owner: str | None
    challenges: list[str]
    """Types, the preferred one first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went."""

    problem: str = ""
    """With its cause and the next step; empty if there is a new certificate."""
    next_at: float = 0.0
    """When it is retried, or renewed."""
    expires_at: float = 0.0


class Failed(Exception):
    """There is no certificate: the cause and the next step."""

    def __init__(self, cause: str, step: str, *, limited: bool = False) -> None:
        super().__init__(f"{quoted(' '.join(cause.split()), _MAX_CAUSE)}; {step}")
        self.limited = limited


@challenges.ChallengeResponse.register
class TlsAlpn01Response(challenges.KeyAuthorizationChallengeResponse):
    """Says that a challenge may be tried (RFC 8737)."""

    typ = "tls-alpn-01"


@challenges.Challenge.register
class TlsAlpn01(challenges.KeyAuthorizationChallenge):
    """A challenge that is answered by a certificate (RFC 8737)."""

    response_cls = TlsAlpn01Response
    typ = response_cls.typ

    def validation(self, account_key: JWK, **_: object) -> str:
        """Return what the certificate proves the knowledge of."""
        return self.key_authorization(account_key)


class Network(ClientNetwork):
    """Sends requests to the authority."""

    def __init__(self, key: JWK, ca: str | None) -> None:
        super().__init__(key, alg=ES256, user_agent=f"goreprox/{__version__}", timeout=REQUEST_S)
        if ca is not None:
            self.verify_ssl = ca  # type: ignore[assignment]  # requests takes the path of a file, too
        self.retry_after_s = 0.0
        """What the last response to a request has said."""
        self.session.hooks["response"].append(self._note)

    def _note(self, response: requests.Response, *_: object, **__: object) -> None:
        self.retry_after_s = 0.0
        if "Retry-After" in response.headers:
            at = ClientV2.retry_after(response, 0)
            self.retry_after_s = max((at - datetime.datetime.now()).total_seconds(), 0.0)

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a signed request, again with another nonce as long as the authority wants one."""
        for _ in range(NONCES - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)


class Order:
    """One order, from the account to the certificate."""

    def __init__(self, job: Job, store: Store) -> None:
        self._job = job
        self._store = store
        try:
            self._key, self._uri = _account(store.account())
        except (ValueError, TypeError, KeyError, JoseError) as exc:
            raise StartError(f"{store.account_file}: malformed; remove it, and another account is made") from exc
        self.network = Network(self._key, job.ca)

    def run(self) -> str:
        """Return the new certificate with its key and its chain.

        Raises:
            Failed: there is none.
        """
        job = self._job
        authority = urlsplit(job.directory).hostname
        try:
            return self._order()
        except messages.Error as exc:
            raise self._refused(exc) from exc
        except errors.ValidationError as exc:
            raise self._refused(_reason(exc)) from exc
        except errors.IssuanceError as exc:
            raise self._refused(exc.error) from exc
        except errors.TimeoutError as exc:
            raise Failed(f"{authority} has not decided within {DEADLINE_S:g} s", "it is asked again") from exc
        except requests.exceptions.SSLError as exc:
            step = "trust its authority by --acme-ca FILE, or correct --acme-directory"
            raise Failed(f"{authority} cannot be asked: {_innermost(exc)}", step) from exc
        except requests.RequestException as exc:
            step = "let this machine connect to it, or through HTTPS_PROXY, or correct --acme-directory"
            raise Failed(f"{authority} cannot be asked: {_innermost(exc)}", step) from exc
        except (errors.Error, JoseError, KeyError, AttributeError) as exc:
            step = "correct --acme-directory"
            raise Failed(f"{job.directory} does not respond as ACME does: {exc!r}", step) from exc

    def _order(self) -> str:
        client = ClientV2(ClientV2.get_directory(self._job.directory, self.network), self.network)
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        request = crypto_util.make_csr(private, [self._job.host])
        self._register(client)
        try:
            order = client.new_order(request)
        except messages.Error as exc:
            if exc.code != "accountDoesNotExist":
                raise
            self._uri = None
            self._register(client)
            order = client.new_order(request)
        for authorization in order.authorizations:
            if authorization.body.status != messages.STATUS_VALID:
                self._answer(client, authorization.body.challenges)
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=DEADLINE_S)
        chain = client.poll_and_finalize(order, deadline).fullchain_pem
        if len(chain) > MAX_PEM_BYTES - len(private) or not chain.isascii():
            raise Failed(f"the certificate has {len(chain):,} characters", "choose another --acme-directory")
        return private.decode() + chain

    def _register(self, client: ClientV2) -> None:
        """Use the account, created the first time."""
        if self._uri is None:
            self.network.account = None
            if client.external_account_required():
                raise messages.Error.with_code("externalAccountRequired", detail="it wants an account of its own")
            wanted = messages.NewRegistration.from_data(email=self._job.email, terms_of_service_agreed=True)
            try:
                self._uri = client.new_account(wanted).uri
            except errors.ConflictError as exc:
                self._uri = exc.location
            text = json.dumps({"key": self._key.to_json(), "uri": self._uri}) + "\n"
            write_secret(self._store.account_file, text, replace=True)
        self.network.account = messages.RegistrationResource(body=messages.Registration(), uri=self._uri)

    def _answer(self, client: ClientV2, offered: Sequence[messages.ChallengeBody]) -> None:
        """Prepare the answer to the first of our challenges that is offered, and have it tried."""
        by_type = {each.chall.typ: each for each in offered}
        kind = next((kind for kind in self._job.challenges if kind in by_type), None)
        if kind is None:
            ours, theirs = " and ".join(self._job.challenges), ", ".join(sorted(by_type))
            step = "listen on http:// port 80 and https:// port 443, or choose another --acme-directory"
            raise Failed(f"the authority offers {theirs}, and this edge can answer {ours}", step)
        challenge = by_type[kind]
        proof = challenge.chall.key_authorization(self._key)
        if kind == TlsAlpn01.typ:
            write_secret(self._store.proof(self._job.host), _proving(self._job.host, proof), replace=True)
        else:
            self._store.respond(challenge.chall.encode("token"), proof)
        client.answer_challenge(challenge, challenge.chall.response(self._key))

    def _refused(self, error: messages.Error) -> Failed:
        step = _STEPS.get(error.code or "", "see what the authority documents of this")
        return Failed(f"{error.code or error.typ}: {_detail(error)}", step, limited=error.code == "rateLimited")


def _account(kept: str | None) -> tuple[JWKEC, str | None]:
    """Return the account's key, and its URL unless there is none yet."""
    if kept is None:
        return JWKEC(key=ec.generate_private_key(ec.SECP256R1())), None
    document = json.loads(kept)
    key = JWKEC.from_json(document["key"])
    if not isinstance(key, JWKEC):
        raise TypeError("not an elliptic-curve key")
    return key, document["uri"]


def _proving(host: str, authorization: str) -> str:
    """Return a certificate that proves the knowledge of an authorization, with its key (RFC 8737, 3)."""
    key = ec.generate_private_key(ec.SECP256R1())
    digest = hashlib.sha256(authorization.encode()).digest()
    extension = x509.UnrecognizedExtension(_ACME_IDENTIFIER, bytes([_OCTET_STRING, len(digest)]) + digest)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(extension, critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return (private + certificate.public_bytes(Encoding.PEM)).decode()


def _reason(failed: errors.ValidationError) -> messages.Error:
    """Return why a challenge has failed."""
    found = (
        challenge.error
        for authorization in failed.failed_authzrs
        for challenge in authorization.body.challenges
        if challenge.error is not None
    )
    return next(found, messages.Error.with_code("unauthorized", detail=str(failed)))


def _detail(error: messages.Error) -> str:
    below = [_detail(each) for each in error.subproblems or ()]
    return ", ".join([error.detail or error.title or "no reason is given", *below])


def _innermost(exc: BaseException) -> str:
    """Return what the system or OpenSSL says, without the layers above it."""
    while True:
        inner = getattr(exc, "reason", None)
        inner = inner if isinstance(inner, BaseException) else exc.__cause__ or exc.__context__
        if inner is None:
            break
        exc = inner
    if isinstance(exc, OSError):
        return str(getattr(exc, "verify_message", "")) or exc.strerror or str(exc)
    return str(exc)


def take(job: Job, *, clock: Callable[[], float] = time.time) -> Outcome:
    """Order a certificate, keep it, and note in the ledger how it went.

    Raises:
        StartError: the ledger cannot be read, or others could have written it.
        OSError: the store cannot be written to.
    """
    store = Store(Path(job.state_dir), job.directory)
    host, wanted = job.host, Wanted(job.host, job.owner)
    store.forget_challenges()
    ledger = store.ledger().begun(wanted, now=clock())
    _note(store, ledger)
    store.forget_certificates(keep=ledger.hosts, before=clock() - FORGET_S)
    order = Order(job, store)
    try:
        pem = order.run()
    except Failed as exc:
        retry_after_s = order.network.retry_after_s
        ledger = ledger.failed(host, str(exc), now=clock(), retry_after_s=retry_after_s, limited=exc.limited)
        _note(store, ledger)
        record = ledger.hosts[host]
        return Outcome(record.problem, record.retry_at)
    finally:
        store.forget_challenges()
    leaf = x509.load_pem_x509_certificate(pem.encode())
    issued_at, expires_at = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    write_secret(store.certificate(host), pem, replace=True)
    ledger = ledger.succeeded(host, now=clock(), issued_at=issued_at, expires_at=expires_at)
    _note(store, ledger)
    return Outcome("", ledger.due_at(wanted, has=True, budget=0, now=clock()), expires_at)


def _note(store: Store, ledger: Ledger) -> None:
    write_secret(store.ledger_file, ledger.text, replace=True)


def main() -> int:
    """Take the job on standard input."""
    signal.alarm(LIFE_S)
    job = Job(**json.load(sys.stdin))
    try:
        outcome = take(job)
    except (StartError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
    return 0
