"""What a start of a role would find wrong on this machine, found without starting it. Nothing is created or kept."""

import errno
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from goreprox.config.acme import AcmeConfig
from goreprox.config.addresses import Address
from goreprox.config.clients import ClientConfig
from goreprox.config.proxy import ProxyConfig
from goreprox.config.roles import BrokerConfig, EdgeConfig, ProviderConfig, ServerConfig
from goreprox.errors import GoreproxError, StartError, advice
from goreprox.keys.state import StateDir
from goreprox.net.certificates import Certificate, link_context, target_context
from goreprox.net.listeners import try_address
from goreprox.process.files import check_directory
from goreprox.roles.acme import store_of
from goreprox.roles.cluster import check_creds
from goreprox.roles.cluster import check_installed as check_nats
from goreprox.roles.dashboard import check_installed
from goreprox.roles.sites import guards_of, tokens_of


class Step(NamedTuple):
    """Something that a start needs."""

    subject: str
    """An option and its value."""
    problem: GoreproxError | None


def problems(config: ServerConfig | EdgeConfig | BrokerConfig | ProviderConfig) -> Iterator[GoreproxError]:
    """Yield an error for each thing that is wrong."""
    return (step.problem for step in steps(config) if step.problem is not None)


def steps(config: ServerConfig | EdgeConfig | BrokerConfig | ProviderConfig) -> Iterator[Step]:
    """Yield all that a start needs: directories, files, and addresses to listen on.

    An address that is in use is no problem: the process that listens there may be the one that runs with this
    configuration.
    """
    runtime_dir = config.process.lock_dir
    yield _step(f"runtime-dir {runtime_dir}", lambda: _check_runtime_dir(runtime_dir))
    if config.process.dashboard is not None:
        yield _step(f"dashboard {config.process.dashboard}", lambda: check_installed(config.process))
    for option, address in config.process.ports:
        yield _of_address(option, address)
    match config:
        case ServerConfig() | EdgeConfig():
            yield from _of_clients(config.clients, config.state_dir)
        case ProviderConfig(dial=dial) if dial.ca is not None:
            yield _step(f"target-ca {dial.ca}", lambda: target_context(dial.ca, insecure=False))
        case BrokerConfig(tls=tls):
            for cert, key in tls.pairs:
                yield _step(f"tls-cert {cert}", functools.partial(Certificate, cert, key, None))
        case _:
            pass
    match config:
        case EdgeConfig(proxy=proxy, brokers=at) | ProviderConfig(proxy=proxy, servers=at):
            yield from _of_links(proxy, at)
        case ServerConfig(keys_dir=state, edges=edges) | BrokerConfig(keys_dir=state, edges=edges):
            if state is not None:
                yield _step(f"state-dir {state}", lambda: _check_state_dir(state))
            yield _of_address("providers", config.peers.providers)
            if edges is not None:
                yield _of_address("edges", edges)


def _of_links(proxy: ProxyConfig, at: Sequence[Address]) -> Iterator[Step]:
    if proxy.ca is not None:
        yield _step(f"server-ca {proxy.ca}", lambda: link_context(proxy.ca))
    if any(each.nats for each in at):
        yield _step("nats", lambda: check_nats(at))
    if (creds := proxy.nats_creds) is not None:
        yield _step(f"nats-creds {creds}", lambda: check_creds(creds))


def _check_acme(acme: AcmeConfig, state_dir: Path | None) -> None:
    store_of(acme, state_dir)
    assert state_dir is not None
    _check_state_dir(state_dir)


def _of_clients(clients: ClientConfig, state_dir: Path | None) -> Iterator[Step]:
    acme = clients.acme
    if acme.enabled:
        yield _step(f"acme-directory {acme.directory}", lambda: _check_acme(acme, state_dir))
    tls, auth = clients.tls, clients.auth
    for cert, key in tls.pairs:
        yield _step(f"tls-cert {cert}", functools.partial(Certificate, cert, key, tls.client_ca, alpn=tls.alpn))
    if auth.file is not None:
        yield _step(f"auth-tokens {auth.file}", lambda: tokens_of(auth))
    if auth.auth_ca is not None:
        yield _step(f"auth-ca {auth.auth_ca}", lambda: guards_of(auth))
    for listener in clients.listeners:
        yield _of_address("listen", listener.address)


def _of_address(option: str, address: Address) -> Step:
    step = _step(f"{option} {address}", lambda: try_address(option, address))
    cause = None if step.problem is None else step.problem.__cause__
    in_use = isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE
    return Step(step.subject, None) if in_use else step


def _step(subject: str, check: Callable[[], object]) -> Step:
    try:
        check()
    except GoreproxError as exc:
        return Step(subject, exc)
    return Step(subject, None)


def _check_runtime_dir(path: Path) -> None:
    if path.is_dir():
        check_directory(path, "--runtime-dir", follow=False)
    else:
        _check_creatable("runtime-dir", path)


def _check_state_dir(path: Path) -> None:
    if not path.is_dir():
        _check_creatable("state-dir", path)
        return
    check_directory(path, "--state-dir")
    if (path / "server.key").exists():  # it was used before, so nothing will be created now
        state = StateDir(path)
        state.server_keys()
        state.all()


def _check_creatable(option: str, path: Path) -> None:
    """Require that a directory which is missing can be created.

    Raises:
        StartError: it cannot.
    """
    parent = next(each for each in path.absolute().parents if each.exists())
    code = 0 if os.access(parent, os.W_OK | os.X_OK) else errno.EACCES
    code = code if parent.is_dir() else errno.ENOTDIR
    if path.exists() or code:
        exc = OSError(code or errno.EEXIST, os.strerror(code or errno.EEXIST))
        raise StartError(f"{option} {path}: {exc.strerror}; {advice(exc, f'--{option}')}")
