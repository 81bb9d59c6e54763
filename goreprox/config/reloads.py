"""The configuration of a role, and what a reload does with another one: which options it applies, what has changed."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from goreprox.config.listed import Given, is_group, leaves, option_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

APPLIED: Final = frozenset(
    (
        # clients
        *("listen", "route", "publish-ports", "allow", "deny"),
        *("max-connections-per-address", "max-connections-per-service", "max-rate"),
        *("trusted-proxies", "proxy-protocol-from"),
        *(
            "queue-timeout",
            "http-redirect",
            "via",
            "host-header",
            "max-header-bytes",
            "max-header-lines",
            "access-log",
            "inspect",
        ),
        *("auth-tokens", "auth-header", "auth-basic", "without-tokens"),
        *("auth-url", "auth-response-header", "auth-ca"),
        *("tls-cert", "tls-key", "tls-client-ca", "tls-alpn"),
        *("acme", "acme-agree", "acme-directory", "acme-ca", "acme-budget"),
        # providers
        *("target", "publish", "weight", "dial-timeout", "proxy-protocol", "target-ca", "target-insecure"),
        *("check", "check-interval", "check-timeout", "check-failures", "check-successes"),
        # links, connections, health and log
        *("broker", "server", "server-ca", "proxy", "max-peers", "health"),
        *("grace", "drain", "half-closed-timeout", "max-connections", "memory", "log-level", "log-json"),
    )
)
"""Options that a reload applies to a running role."""
KEPT: Final = frozenset(
    (
        *("name", "runtime-dir", "insecure", "link-timeout", "reuse-port", "workers"),
        *("dashboard", "dashboard-token-file"),
        *("providers", "edges", "address", "state-dir"),
        *("join", "join-file", "nats-creds", "config"),
    )
)
"""Options that stay as they were at the start."""
IDENTITY: Final = frozenset(("name", "runtime-dir", "workers"))
"""What an upgrade in place does not apply, either: by these a process is known, to its lock and its peers; `workers`
are processes."""
UPGRADE: Final = "needs an upgrade"
RESTART: Final = "needs a restart"

_C = TypeVar("_C", bound="DataclassInstance")


class Configuration(Generic[_C]):
    """The configuration of a role."""

    def __init__(
        self, current: _C, read: Callable[[], _C], given: Callable[[_C], Iterable[Given]] = lambda _: ()
    ) -> None:
        """Begin with the `current` one; `read` returns the next one, or raises GoreproxError.

        `given` tells of a configuration where its options come from, as they were read last.
        """
        self.current = current
        self.read = read
        self._given = given

    @property
    def given(self) -> list[Given]:
        """The options that are in use, and where they come from."""
        return list(self._given(self.current))


class Difference(NamedTuple):
    """What differs between two configurations, one line each."""

    applied: list[str]
    kept: list[str]
    """What a reload does not apply, and what would."""


def applicable(before: _C, after: _C) -> _C:
    """Return `after` with the values that `before` has for the options that a reload does not apply.

    Raises:
        ConfigError: the two do not fit together.
    """
    values: dict[str, object] = {}
    for each in dataclasses.fields(before):
        old, new = getattr(before, each.name), getattr(after, each.name)
        if is_group(each):
            values[each.name] = applicable(old, new)
        else:
            values[each.name] = new if option_of(each) in APPLIED else old
    return dataclasses.replace(before, **values)


def difference(before: object, after: object) -> Difference:
    """Return what differs between two configurations of a role."""
    found = Difference([], [])
    for old, new in zip(leaves(before), leaves(after), strict=True):
        if old.value == new.value:
            continue
        lines = list(_lines(old.name, old.texts, new.texts, several=isinstance(new.value, tuple)))
        if old.name in APPLIED:
            found.applied.extend(lines)
        else:
            found.kept.extend(f"{line} ({RESTART if old.name in IDENTITY else UPGRADE})" for line in lines)
    return found


def _lines(option: str, before: Sequence[str], after: Sequence[str], *, several: bool) -> Iterator[str]:
    """Yield `+ option value`, `- option value`, or, where a value or what it is for has changed, `~ option: …`."""
    had, has = set(before), set(after)
    added = [text for text in after if text not in had]
    removed = [text for text in before if text not in has]
    if not several or not (added or removed):
        yield f"~ {option}: {', '.join(before) or 'none'} -> {', '.join(after) or 'none'}"
        return
    old, new = _by_key(removed), _by_key(added)
    changed = old.keys() & new.keys()
    yield from (f"+ {option} {text}" for text in added if _key(text) not in changed)
    yield from (f"- {option} {text}" for text in removed if _key(text) not in changed)
    yield from (f"~ {option} {key}: {old[key]} -> {new[key]}" for key in new if key in changed)


def _key(text: str) -> str:
    return text.partition("=")[0]


def _by_key(texts: Sequence[str]) -> Mapping[str, str]:
    """Return what is behind `=`, by what is before it, where that is there once."""
    times = Counter(map(_key, texts))
    return {_key(text): text.partition("=")[2] or "default" for text in texts if times[_key(text)] == 1}
