"""Certificates by ACME for the hosts of an edge: which ones need one, and a child that orders one after the other.

All processes of a machine do this with one store. The lock of the store is for the one that orders at this moment; what
the others need is in the store. The child is killed at the end of this process, and before an upgrade.
"""

import asyncio
import contextlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from loguru import logger

from brokers import LimitedLog
from goreprox.acme.schedule import Choice, Ledger, Record, Wanted
from goreprox.acme.store import Store, objection
from goreprox.config.acme import AcmeConfig
from goreprox.config.addresses import Scheme
from goreprox.config.clients import ClientConfig
from goreprox.errors import StartError
from goreprox.net.certificates import check_authorities
from goreprox.process import child
from goreprox.process.child import ChildError
from goreprox.process.clock import iso
from goreprox.process.log import quoted
from goreprox.process.reloaded import Reloaded
from goreprox.process.supervisor import VARIABLES
from goreprox.status.document import AcmeStatus, CertificateStatus

LOOK_S: Final = 600.0
"""After this time at most the store is looked at again: the time of day may be set."""
LOCKED_S: Final = 5.0
"""Pause while another process orders."""
BROKEN_MIN_S: Final = 60.0
BROKEN_MAX_S: Final = 3600.0
"""Pause after the child or the store has failed, twice as long with each failure in a row."""
CHILD_S: Final = 330.0
"""How long a child may take, which ends itself after 300 s."""
PACKAGES: Final = ("acme", "josepy", "cryptography")
_CODE: Final = "import sys; sys.path[:] = {path!r}; from goreprox.acme.orders import main; sys.exit(main())"
"""Not `-m`, which searches the working directory first, where we may not."""


class _Broken(Exception):
    """A child has ended without a result."""


class _Hosts(NamedTuple):
    """The hosts of an edge."""

    wanted: Mapping[str, Wanted]
    """Those that need a certificate."""
    without: Mapping[str, str]
    """Those that get none, and why."""


class Acme:
    """A context in which certificates are asked for, if that is configured."""

    def __init__(
        self,
        clients: ClientConfig,
        state_dir: Path | None,
        published: Callable[[], Iterable[tuple[str, str]]],
        *,
        shared: bool,
    ) -> None:
        """Keep certificates in `state_dir`, whose hosts other machines may serve, too, if it is `shared`.

        `published` returns the hosts that are published at this moment, each with its owner.

        Raises:
            StartError: the directory cannot be used, or a package is missing.
        """
        self._state_dir = state_dir
        self._published = published
        self._shared = shared
        self.needed: Callable[[str], bool] = lambda _: True
        """Returns whether clients of a host would get a certificate that is asked for; to be set before."""
        self._log = LimitedLog()
        self._changed = asyncio.Event()
        self._hosts = _Hosts({}, {})
        self._told: set[str] = set()
        """Hosts that get none, whose reason was logged."""
        self._failures = 0
        """Of the child or the store, in a row."""
        self._problem = ""
        """The last of these."""
        self._keeping: asyncio.Task[None] | None = None
        self.reconfigured(clients)()

    def reconfigured(self, clients: ClientConfig) -> Callable[[], None]:
        """Prepare for another configuration; return what applies it, which cannot fail.

        Raises:
            StartError: the directory cannot be used, or a package is missing.
        """
        store = store_of(clients.acme, self._state_dir)
        if store is not None:
            store.prepare()

        def apply() -> None:
            self._clients, self._store = clients, store
            self._ledger = Reloaded(
                lambda: [] if store is None else [store.ledger_file],
                lambda _: Ledger() if store is None else store.ledger(),
                Ledger(),
            )
            if self._keeping is not None:
                self.changed()

        return apply

    async def __aenter__(self) -> Self:
        self.changed()
        if self._store is not None:
            self._warn()
        self._keeping = asyncio.get_running_loop().create_task(self._keep(), name="certificates")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])

    def changed(self) -> None:
        """Look which hosts there are now."""
        self._hosts = self._look()
        for host, why in self._hosts.without.items():
            if host not in self._told:
                self._told.add(host)
                self._log.say("no_certificate", f"{host} gets no certificate: {why}", host=host)
        self._told.intersection_update(self._hosts.without)
        self._changed.set()

    def _look(self) -> _Hosts:
        wanted: dict[str, Wanted] = {}
        without: dict[str, str] = {}
        if self._store is None:
            return _Hosts(wanted, without)
        routes = [Wanted(route.host) for route in self._clients.web_routes]
        published = [Wanted(*each) for each in self._published()] if self._clients.publishes_with_tls else []
        for each in (*published, *routes):  # a route comes before a published name
            if self.needed(each.host):
                why = objection(each.host)
                if why is None:
                    wanted[each.host] = each
                else:
                    without[each.host] = why
        return _Hosts(wanted, without)

    def _warn(self) -> None:
        """Say what may be missing."""
        if self._shared:
            self._log.say(
                "acme_shared",
                f"certificates are in {self._state_dir}: edges on other machines that serve the same hosts need this "
                "directory, too, or do without --acme",
            )
        ports = {listener.address.port for listener in self._clients.listeners}
        if not ports & {80, 443}:
            self._log.say(
                "acme_ports",
                "authorities connect to port 443, or 80, of a host, and this edge listens on neither: lead one of them "
                "here",
            )

    # What clients ask for.

    def file_of(self, host: str) -> Path | None:
        """Return the file of a host's certificate, if it is one of ours; it may not be there yet."""
        return self._store.certificate(host) if self._store is not None and host in self._hosts.wanted else None

    def proof_of(self, host: str) -> Path | None:
        """Return the file of the certificate that answers a challenge by TLS; None if there is no such challenge."""
        path = None if self._store is None or objection(host) else self._store.proof(host)
        return path if path is not None and path.exists() else None

    def response(self, token: bytes) -> bytes | None:
        """Return the response to a challenge by HTTP; None if there is no such challenge."""
        return None if self._store is None else self._store.response(token)

    # Orders.

    async def _keep(self) -> None:
        """Ask for one certificate after the other, each when it is time, for ever."""
        while True:
            self._changed.clear()
            try:
                pause_s = await self._step()
                self._failures, self._problem = 0, ""
            except (StartError, OSError, _Broken) as exc:
                pause_s = min(BROKEN_MIN_S * 2**self._failures, BROKEN_MAX_S)
                self._failures = min(self._failures + 1, 10)
                self._problem = f"certificates cannot be asked for: {exc}"
                self._log.say("acme_broken", f"{self._problem}; retrying in {pause_s:g} s")
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
            else:
                if self._failures:  # what changes often must not make a failure frequent
                    await asyncio.sleep(BROKEN_MIN_S)

    async def _step(self) -> float:
        """Ask for the next certificate, if it is time; return after how many seconds to look again."""
        store, choice = self._store, self._choose()
        if store is None or choice.wanted is None or choice.at > time.time():
            return min(max(choice.at - time.time(), 0.0), LOOK_S)
        lock = store.lock()
        if lock is None:
            return LOCKED_S
        try:
            choice = self._choose()  # another process may just have got it
            if choice.wanted is not None and choice.at <= time.time():
                await self._order(choice.wanted, lock)
        finally:
            os.close(lock)
        return 0.0

    def _choose(self) -> Choice:
        if self._store is None:
            return Choice(math.inf, None)
        self._ledger.refresh()
        return self._ledger.value.choose(
            self._hosts.wanted.values(), has=self._store.has, budget=self._clients.acme.budget, now=time.time()
        )

    async def _order(self, wanted: Wanted, lock: int) -> None:
        """Have a child order a certificate.

        Raises:
            _Broken: it has no result.
        """
        logger.bind(event="certificate_asked", host=wanted.host).debug("asking for a certificate for {}", wanted.host)
        outcome = await self._run(self._job(wanted), lock)
        match outcome:
            case {"problem": "", "expires_at": int() | float() as expires_at}:
                expires = iso(expires_at)
                text = "there is a new certificate for {}, which expires at {}"
                logger.bind(event="certificate_issued", host=wanted.host, expires=expires).info(
                    text, wanted.host, expires
                )
            case {"problem": str(problem), "next_at": int() | float() as next_at}:
                retry = iso(next_at)
                logger.bind(event="certificate_failed", host=wanted.host, retry_at=retry).warning(
                    "no certificate for {}: {} (retrying at {})", wanted.host, problem, retry
                )
            case _:
                raise _Broken("the result of an order is malformed")

    def _job(self, wanted: Wanted) -> dict[str, object]:
        acme = self._clients.acme
        kinds = challenges(self._clients)
        first = self._ledger.value.hosts.get(wanted.host, Record()).failures % len(kinds)
        return {
            "state_dir": str(self._state_dir),
            "directory": acme.directory,
            "ca": None if acme.ca is None else str(acme.ca),
            "email": acme.email,
            "host": wanted.host,
            "owner": wanted.owner,
            "challenges": [*kinds[first:], *kinds[:first]],
        }

    async def _run(self, job: Mapping[str, object], lock: int) -> object:
        """Run a child to its end, or to that of this task; return what it says.

        Raises:
            OSError: it cannot be started.
            _Broken: it has said nothing.
        """
        try:
            result = await child.output_of(
                [sys.executable, "-c", _CODE.format(path=sys.path)],
                {name: value for name, value in os.environ.items() if name not in VARIABLES},
                data=json.dumps(job).encode(),
                pass_fds=(lock,),
                timeout_s=CHILD_S,
            )
        except TimeoutError:
            raise _Broken(f"an order takes longer than {CHILD_S:g} s") from None
        except ChildError as exc:
            raise _Broken(quoted(str(exc))) from exc
        return json.loads(result)

    # Status.

    @property
    def status(self) -> dict[str, AcmeStatus]:
        """What is known of each host."""
        store, now = self._store, time.time()
        found: dict[str, AcmeStatus] = {}
        if store is None:
            return found
        with contextlib.suppress(StartError):  # which is a problem already
            self._ledger.refresh()
        ledger = self._ledger.value
        for host, wanted in self._hosts.wanted.items():
            record, has, budget = ledger.hosts.get(host, Record()), store.has(host), self._clients.acme.budget
            at = ledger.due_at(wanted, has=has, budget=budget, now=now)
            problem = record.problem or self._problem
            if not has and wanted.owner is not None and ledger.affordable_at(wanted.owner, host, budget, now) > now:
                problem = f"the key has had its {budget} new certificates of this week; raise --acme-budget, or wait"
            found[host] = {
                "expires_at": record.expires_at or None if has else None,
                "next_at": at if at < math.inf else None,
                "problem": problem or None,
            }
        for host, why in self._hosts.without.items():
            found[host] = {"expires_at": None, "next_at": None, "problem": why}
        return found

    @property
    def certificates(self) -> list[CertificateStatus]:
        """Those that there are, as they are shown beside those of files."""
        store = self._store
        if store is None:
            return []
        return [
            {"option": "acme", "file": str(store.certificate(host)), "expires_at": each["expires_at"]}
            for host, each in self.status.items()
            if each["expires_at"] is not None
        ]


def challenges(clients: ClientConfig) -> Sequence[str]:
    """Return the types of challenges that can be answered here, the preferred one first.

    Without the ports that authorities connect to, these lead to others, as behind a NAT.
    """
    found = {
        "tls-alpn-01": [
            each.address.port for each in clients.listeners if each.scheme.is_tls or each.scheme is Scheme.SNI
        ],
        "http-01": [each.address.port for each in clients.listeners if each.scheme is Scheme.HTTP],
    }
    usual = [kind for kind, port in (("tls-alpn-01", 443), ("http-01", 80)) if port in found[kind]]
    return usual or [kind for kind, ports in found.items() if ports]


def store_of(config: AcmeConfig, state_dir: Path | None) -> Store | None:
    """Return where certificates are kept, if they are asked for. Nothing is created.

    Raises:
        StartError: they cannot be asked for.
    """
    if not config.enabled:
        return None
    if missing := [package for package in PACKAGES if importlib.util.find_spec(package) is None]:
        raise StartError(f"acme: it needs {', '.join(missing)}; pip install 'goreprox[acme]'")
    if state_dir is None:
        raise StartError("acme: certificates need a directory to be kept in; name one with --state-dir, and restart")
    check_authorities("acme-ca", config.ca)
    return Store(state_dir, config.directory)
