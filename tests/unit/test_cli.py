"""The command line: where options come from, who wins, and errors of one line."""

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from goreprox import __version__
from goreprox.cli import main as cli
from goreprox.cli.app import COMMANDS, app, sources
from goreprox.config.addresses import Address, Target
from goreprox.config.process import ProcessConfig
from goreprox.config.roles import BrokerConfig, EdgeConfig, ProviderConfig, ServerConfig
from goreprox.http.tokens import Tokens
from goreprox.keys.join import Join
from tests.support.commands import Started
from tests.support.configs import leaves

ROOT = Path(__file__).parents[2]

INSECURE = ProcessConfig(insecure=True)


def started_by(started: Started, *arguments: str) -> Any:
    assert cli.main([*arguments, "--insecure"]) == 0
    return started.config


def server(started: Started, *arguments: str) -> ServerConfig:
    config = started_by(started, "server", *arguments)
    assert isinstance(config, ServerConfig)
    return config


def test_the_defaults_are_those_of_the_configuration(started: Started) -> None:
    assert server(started) == ServerConfig(process=INSECURE)
    assert started_by(started, "edge", "--broker", "h") == EdgeConfig(brokers=(Address("h", 9888),), process=INSECURE)
    assert started_by(started, "broker") == BrokerConfig(process=INSECURE)
    target = Target("default", Address("127.0.0.1", 3000))
    servers = (Address("h", 9887),)
    assert started_by(started, "provider", "3000", "--server", "h") == ProviderConfig(
        targets=(target,), servers=servers, process=INSECURE
    )


def test_a_target_may_speak_tls(started: Started) -> None:
    config = started_by(started, "provider", "a=tls://h:1", "b=2", "--server", "h", "--target-insecure")
    assert config.targets == (Target("a", Address("h", 1), tls=True), Target("b", Address("127.0.0.1", 2)))
    assert config.dial.insecure


def test_flags_take_precedence_over_variables_tables_and_the_top_level(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "goreprox.toml"
    file.write_text("grace = 11")
    assert server(started).connections.grace_s == 11
    file.write_text("grace = 11\n[server]\ngrace = 12\n[provider]\ngrace = 9")
    assert server(started).connections.grace_s == 12
    monkeypatch.setenv("GOREPROX_GRACE", "13")
    assert server(started).connections.grace_s == 13
    assert server(started, "--grace", "14").connections.grace_s == 14


TLS = ("--tls-cert", "c", "--tls-key", "k")
ROLE = {
    "name": "n",
    "link-timeout": 7,
    "health": "localhost:9",
    "dashboard": "localhost:8",
    "dashboard-token-file": "t",
    "log-level": "debug",
    "log-json": True,
}
END = {"grace": 61, "drain": 31, "half-closed-timeout": 5, "max-connections": 100, "memory": 64}
CLIENTS = {
    "allow": ["10.0.0.0/8", "web=::/0"],
    "deny": ["10.1.0.0/16"],
    "max-connections-per-address": 6,
    "queue-timeout": 3,
    "auth-tokens": "tokens.toml",
    "auth-header": "X-Token",
    "auth-basic": True,
    "auth-url": ["http://auth:1/x?a=b", "web=https://[::1]/"],
    "auth-response-header": ["X-User", "Authorization"],
    "auth-ca": "auth.pem",
    "without-tokens": [5],
    "trusted-proxies": ["10.0.0.0/8", "::1"],
    "proxy-protocol-from": ["10.0.0.0/8", "web=::1"],
    "access-log": False,
    "inspect": ["web", "*"],
    "route": ["a.example.org=web", "*=b"],
    "publish-ports": ["443", "20000-20999"],
    "tls-cert": "cert.pem",
    "tls-key": "key.pem",
    "tls-client-ca": "ca.pem",
    "tls-alpn": ["h2", "x"],
    "http-redirect": True,
    "acme": "me@a.test",
    "acme-directory": "https://ca.test/directory",
    "acme-ca": "ca.pem",
    "acme-budget": 3,
    "via": True,
    "host-header": ["a.test", "web=b.test:1"],
    "max-header-bytes": 2048,
    "max-header-lines": 10,
    "max-rate": ["2.5", "web=100"],
    "max-connections-per-service": ["7", "web=3"],
}
OPTIONS: dict[str, dict[str, object]] = {
    "server": {
        "listen": ["http://127.0.0.1:1", "https://[::1]:2", "tls://5=web"],
        "reuse-port": True,
        "providers": "localhost:3",
        "edges": "localhost:4",
        "address": ["a", "b:1"],
        "max-peers": 5,
        **CLIENTS,
        **ROLE,
        **END,
    },
    "edge": {
        "listen": ["http://1", "https://2", "tls://5=web"],
        "reuse-port": True,
        "broker": ["h", "tls://i:1", "nats://n"],
        "server-ca": "ca.pem",
        "nats-creds": "n.creds",
        "proxy": ["h=socks5://h:1080"],
        "workers": 2,
        "address": ["a", "b:1"],
        **CLIENTS,
        **ROLE,
        **END,
    },
    "broker": {
        "providers": "tls://localhost:3",
        "edges": "localhost:4",
        "address": ["a", "tls://b:1"],
        "max-peers": 5,
        "tls-cert": "cert.pem",
        "tls-key": "key.pem",
        **ROLE,
    },
    "provider": {
        "target": ["a=3000", "b=tls://h:3001"],
        "server": ["h", "tls://i:1", "nats://n:1"],
        "server-ca": "ca.pem",
        "nats-creds": "n.creds",
        "proxy": ["h=socks5://h:1080"],
        "dial-timeout": 4,
        "publish": ["a=http://app.example.org", "b=tcp://20003"],
        "weight": 2.5,
        "proxy-protocol": "v2",
        "target-ca": "ca.pem",
        "check": ["tcp", "a=http:/healthz"],
        "check-interval": 6,
        "check-timeout": 3,
        "check-failures": 4,
        "check-successes": 5,
        **ROLE,
        **END,
    },
}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_is_a_flag_a_variable_and_a_key(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    values = OPTIONS[command] | {"runtime-dir": str(tmp_path)}
    unset = started_by(started, command, *REQUIRED.get(command, ()))
    flags = [text for key, value in values.items() for each in listed(value) for text in flag(key, each)]
    by_flag = started_by(started, command, *flags)
    defaults = dict(leaves(unset))
    same = {path for path, value in leaves(by_flag) if value == defaults[path]}
    # The options above are all there are, but for those about keys, and one that excludes another.
    assert same <= {"state_dir", "security", "dial.insecure", "process.insecure", "clients.acme.agree"}

    with monkeypatch.context() as environment:
        for key, value in values.items():
            environment.setenv(f"GOREPROX_{key.upper().replace('-', '_')}", " ".join(map(str, listed(value))))
        assert started_by(started, command) == by_flag

    file = tmp_path / "other.toml"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    assert tomllib.loads(file.read_text())
    assert started_by(started, command, "--config", str(file)) == by_flag
    monkeypatch.setenv("GOREPROX_CONFIG", str(file))
    assert started_by(started, command) == by_flag


@pytest.mark.parametrize("way", ["flag", "variable", "key"])
@pytest.mark.parametrize("command", OPTIONS)
def test_a_runtime_directory_may_begin_with_the_home_directory(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, way: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    flags = [*REQUIRED.get(command, ())]
    if way == "flag":
        flags += ["--runtime-dir", "~/run"]
    elif way == "variable":
        monkeypatch.setenv("GOREPROX_RUNTIME_DIR", "~/run")
    else:
        (tmp_path / "goreprox.toml").write_text('runtime-dir = "~/run"')
    assert started_by(started, command, *flags).process.runtime_dir == tmp_path / "home/run"


def test_the_status_is_asked_of_a_runtime_directory_in_the_home_directory(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cli.main(["status", "--runtime-dir", "~/run"]) == 1
    monkeypatch.setenv("GOREPROX_RUNTIME_DIR", "~/run")
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err.count(f"no process runs in {tmp_path}/home/run;") == 2


REQUIRED = {"edge": ("--broker", "h0"), "provider": ("30", "--server", "h0")}


def flag(key: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    return [f"--{key}", str(value)]


def listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def test_a_provider_can_be_configured_by_its_file_alone(started: Started, tmp_path: Path) -> None:
    (tmp_path / "goreprox.toml").write_text('[provider]\ntarget = "3000"\nserver = ["h"]\ninsecure = true\n')
    assert cli.main(["provider"]) == 0
    assert str(started.config.targets[0].address) == "127.0.0.1:3000"
    assert started.config.servers == (Address("h", 9887),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("grase = 1", "grase is not an option; did you mean grace?"),
        ("[server]\ngrase = 1", "[server] grase is not an option; did you mean grace?"),
        ("[sever]\ngrace = 1", "sever is not an option; did you mean server?"),
        ("[server]\ndial-timeout = 1", "[server] dial-timeout is not an option"),
        ("config = 'x'", "config is not an option"),
        ("grace = ", "goreprox.toml: "),
        ("grace = 'soon'", "goreprox.toml: grace 'soon': expected seconds, or a time like 500ms, 60s, 5m or 1h30m"),
    ],
)
def test_an_invalid_file_is_rejected_with_its_name(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "goreprox.toml").write_text(content)
    assert cli.main(["server", "--insecure"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert started.config is None


def test_the_top_level_may_have_keys_of_other_commands(started: Started, tmp_path: Path) -> None:
    (tmp_path / "goreprox.toml").write_text("dial-timeout = 3\nsize = 4\ngrace = 11")
    assert server(started).connections.grace_s == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["provider", "3000", "--server", "h"], "add --insecure"),
        (["provider", "--insecure", "--server", "h"], "target: none is given"),
        (["provider", "3000", "--insecure"], "server: none is given"),
        (["edge", "--insecure"], "broker: none is given"),
        (["edge", "--broker", "h"], "add --insecure"),
        (["provider", "1", "--server", "h", "--insecure", "--join", "goreprox://x"], "leave one of them out"),
        (["provider", "1", "--join", "goreprox://x", "--join-file", "x"], "leave one of them out"),
        (["provider", "1", "--join", "goreprox://x@h"], "join string: it is not whole"),
        (["provider", "1", "--join", "http://x@h"], "join string: expected goreprox://"),
        (["provider", "1", "--join-file", "none"], "join-file none: No such file or directory"),
        (["server", "--insecure", "--allow", "example.org"], "allow 'example.org': "),
        (["server", "--insecure", "--deny", "web=::/0"], "deny web=::/0: no client can connect there; services"),
        (["server", "--insecure", "--max-connections-per-address", "-1"], "max-connections-per-address -1: expected 1"),
        (["keys", "add", "a/b"], "name 'a/b': expected 1 to 64"),
        (["keys", "add", "a", "--services", "x y"], "service 'x y': expected 1 to 64"),
        (["keys", "add", "a", "--address", "h:x"], "address 'h:x': 'x' is not a port"),
        (["keys", "add", "a", "--address", "h:0"], "address h:0: expected a host and a port other than 0"),
        (["keys", "add", "a", "--services", ","], "services: expected at least one name"),
        (["token", "new", "a", "--services", "", "--auth-tokens", "t"], "services: expected at least one name"),
        (["token", "new", "a", "--expires", "9999-12-31T23:59:59-12:00", "--auth-tokens", "t"], "expires: 9999-12-31"),
        (["keys", "revoke", "a"], "no server.key is there, so no server uses it"),
        (["keys", "rotate"], "no server.key is there, so no server uses it"),
        (["keys", "list"], "no server.key is there, so no server uses it"),
        (["keys", "revoke"], "goreprox keys revoke: NAME is missing"),
        (["broker", "--grace", "1"], "Unknown option: --grace"),
        (["broker", "--insecure", "--edges", "9887"], "providers :9887 and edges :9887: one port for two"),
        (["server", "--insecure", "--providers", "tls://443"], "providers tls://:443: tls-cert is missing; give the"),
        (["server", "--insecure", "--edges", "tls://443", "--tls-cert", "c"], "edges tls://:443: tls-key is missing;"),
        (["broker", "--insecure", "--tls-cert", "c", "--tls-key", "k"], "tls-cert c: no port speaks TLS; write https:"),
        (["server", "--insecure", "--providers", "https://443"], "leave https:// out"),
        (["provider", "1", "--server", "h", "--insecure", "--server-ca", "c"], "server-ca c: there is no TLS with any"),
        (["edge", "--broker", "h", "--insecure", "--server-ca", "c"], "server-ca c: there is no TLS with any broker;"),
        (["edge", "--broker", "nats://h", "--insecure", "--proxy", "http://p:1"], "there is none for NATS servers"),
        (["edge", "--broker", "h", "--insecure", "--nats-creds", "c"], "nats-creds c: no broker is a NATS server;"),
        (["server", "--insecure", "--edges", "nats://4222"], "leave nats:// out"),
        (
            [
                "server",
                "--insecure",
                "--listen",
                "https://443",
                *TLS,
                "--providers",
                "tls://443",
                "--tls-client-ca",
                "a",
            ],
            "providers tls://:443: clients of this port need certificates by --tls-client-ca, and providers have none",
        ),
        *(
            (["server", "--insecure", "--listen", listen, *TLS, *links], "one port for two; choose another one for")
            for listen, links in (
                ("http://443", ("--providers", "tls://443")),
                ("https://443", ("--providers", "443")),
                ("https://127.0.0.1:443", ("--providers", "tls://443")),
                ("https://443", ("--edges", "tls://443")),
            )
        ),
        (["server", "--insecure", "--edges", "8080"], "listen :8080 and edges :8080: one port for two"),
        (["server", "--insecure", "--auth-tokens", "t"], "auth-tokens: listen :8080 passes bytes on unread"),
        (
            ["server", "--insecure", "--listen", "http://1", "--listen", "2", "--auth-tokens", "t"],
            "without-tokens 2 if",
        ),
        (
            ["server", "--insecure", "--listen", "2", "--listen", "3", "--auth-tokens", "t", "--without-tokens", "2"],
            "auth-tokens: listen :3 passes bytes on unread",
        ),
        (["server", "--insecure", "--listen", "2", "--without-tokens", "2"], "without-tokens 2: there are no"),
        (
            ["server", "--insecure", "--listen", "http://1", "--auth-tokens", "t", "--without-tokens", "1"],
            "without-tokens 1: no tcp://, tls:// or sni:// listener has this port",
        ),
        (
            ["provider", "1", "--server", "h", "--insecure", "--target-ca", "c"],
            "target-ca: no target speaks TLS; write tls",
        ),
        (
            ["provider", "1", "--server", "h", "--insecure", "--target-insecure"],
            "target-insecure: no target speaks TLS",
        ),
        (
            ["provider", "tls://1", "--server", "h", "--insecure", "--publish", "tls://a.test"],
            "publish tls://a.test: clients speak TLS with the target itself, so write 127.0.0.1:1 without tls://",
        ),
        (
            ["provider", "tls://1", "--server", "h", "--insecure", "--target-insecure", "--target-ca", "c"],
            "target-insecure: there is a target-ca, too",
        ),
        (
            ["provider", "a=1", "--server", "h", "--insecure", "--check", "b=tcp"],
            "check b=tcp: that service is not off",
        ),
        (["provider", "1", "--server", "h", "--insecure", "--check", "tcp", "--check", "http:/"], "check for all serv"),
        (
            ["provider", "1", "--server", "h", "--insecure", "--check-interval", "0"],
            "check-interval 0: expected 0.1 to",
        ),
        (["provider", "1", "--server", "h", "--insecure", "--check-failures", "0"], "check-failures 0: expected 1 to"),
        (["server", "--insecure", "--max-rate", "web=1"], "max-rate web=1: no client can ask for that service"),
        (["server", "--insecure", "--max-rate", "0"], "max-rate 0.0: expected 0.001 to 1,000,000"),
        (["server", "--insecure", "--max-rate", "fast"], "max-rate 'fast': expected MiB, or a size like"),
        (["server", "--insecure", "--max-rate", "a b=1"], "max-rate 'a b=1': 'a b' is not the name of a service"),
        (["server", "--insecure", "--max-rate", "1", "--max-rate", "2"], "max-rate for all services: given twice"),
        (["server", "--insecure", "--max-connections-per-service", "0"], "max-connections-per-service 0: expected 1"),
        (
            ["server", "--insecure", "--max-connections-per-service", "x=9"],
            "per-service x=9: no client",
        ),
        (["server", "--insecure", "--max-connections-per-service", "1.5"], "'1.5': expected a whole number"),
        (["server", "--insecure", "--tls-alpn", "h2"], "tls-alpn: there is no tls://"),
        (["server", "--insecure", "--listen", "http://80", "--http-redirect"], "http-redirect: it leads clients from"),
        (["server", "--insecure", "--host-header", "web=a b"], "host-header 'web=a b': 'a b' is not a host"),
        (["server", "--insecure", "--host-header", "a:99999"], "host-header 'a:99999'"),
        (["server", "--insecure", "--host-header", "web=a"], "host-header web=a: no client can ask for that service"),
        (
            ["server", "--insecure", "--max-header-bytes", "500000"],
            "max-header-bytes 500,000: expected 1,024 to 262,144",
        ),
        (["server", "--insecure", "--max-header-lines", "9"], "max-header-lines 9: expected 10 to 1,000"),
        (["server", "--insecure", "--route", "a=web"], "route: there is no http://, https:// or sni:// to listen on"),
        (
            ["server", "--insecure", "--listen", "http://80", "--route", "tls://a=web"],
            "route tls://a=web: there is no sni:// to listen on; only there TLS is passed on",
        ),
        (
            ["server", "--insecure", "--listen", "sni://443", "--tls-key", "k"],
            "listen sni://:443: tls-cert is missing; give the certificate by --tls-cert FILE and its",
        ),
        (
            ["server", "--insecure", "--listen", "sni://443", "--tls-client-ca", "c"],
            "listen sni://:443: tls-cert is missing",
        ),
        (
            ["server", "--insecure", "--listen", "https://8443"],
            "listen https://:8443: tls-cert is missing; give the certificate by --tls-cert FILE and its",
        ),
        (
            ["edge", "--broker", "h", "--insecure", "--listen", "tls://8443", "--tls-cert", "c"],
            "listen tls://:8443: tls-key is missing; give the certificate by --tls-cert FILE and its",
        ),
        (
            [
                "server",
                "--insecure",
                *("--listen", "tls://1"),
                *("--tls-cert", "c", "--tls-cert", "d", "--tls-key", "k"),
            ],
            "tls-key: there are 2 --tls-cert and 1 --tls-key; give each certificate its private key, in the same order",
        ),
        (
            ["server", "--insecure", *("--listen", "tls://1"), *("--tls-cert", "c") * 2, *("--tls-key", "k") * 2],
            "tls-cert c: given twice; once is enough",
        ),
        (
            ["server", "--insecure", "--listen", "tls://1", *(f"--tls-cert={number}" for number in range(65))],
            "tls-cert: expected at most 64 of them, got 65",
        ),
        (["server", "--insecure", "--tls-cert", "c"], "tls-cert c: no port speaks TLS; write https:// or tls:// in"),
        (["server", "--insecure", "--tls-client-ca", "c"], "tls-client-ca c: no port speaks TLS; write https:// or"),
        (
            ["server", "--insecure", "--listen", "tls://1", "--tls-cert", "c", "--tls-key", "k", "--auth-tokens", "t"],
            "auth-tokens: listen :1 passes bytes on unread and cannot check them; write https://:1, or",
        ),
        (["server", "--insecure", "--listen", "http://1=a", "--route", "a=b"], "with routes the host decides"),
        (
            ["server", "--insecure", "--listen", "http://1", "--route", "a:80=b"],
            "route 'a:80=b': write [tls://]HOST=SERVICE",
        ),
        (["server", "--insecure", "--listen", "http://1", "--route", "a="], "service '': expected"),
        (["server", "--insecure", "--auth-header", "a b"], "auth-header 'a b': expected the name of a header"),
        (["server", "--insecure", "--auth-basic"], "auth-basic: there are no --auth-tokens; `goreprox token new`"),
        *(
            (["server", "--insecure", "--listen", "http://1", *options], message)
            for options, message in (
                (["--auth-url", "auth:80"], "auth-url 'auth:80': write [SERVICE=]http://HOST[:PORT]/PATH, or https://"),
                (["--auth-url", "default=ftp://a/"], "auth-url 'default=ftp://a/': write [SERVICE=]http://HOST"),
                (["--auth-url", "http://me@a/"], "auth-url 'http://me@a/': write [SERVICE=]http://HOST"),
                (["--auth-url", "http://a/#b"], "auth-url 'http://a/#b': write [SERVICE=]http://HOST"),
                (["--auth-url", "http://a/\nb"], "auth-url 'http://a/\\nb': write [SERVICE=]http://HOST"),
                (["--auth-url", "http://80/"], "auth-url 'http://80/': the host or the port is missing"),
                (["--auth-url", "http://a:0/"], "auth-url 'http://a:0/': the host or the port is missing"),
                (["--auth-url", "web=http://a/"], "auth-url web=http://a/: no client can ask for that service"),
                (["--auth-url", "http://a/", "--auth-url", "http://b/"], "auth-url for all services: given twice"),
                (["--auth-response-header", "A"], "auth-response-header A: there is no --auth-url"),
                (
                    ["--auth-url", "http://a/", "--auth-response-header", "Host"],
                    "auth-response-header 'Host': expected",
                ),
                (["--auth-url", "http://a/", "--auth-response-header", "a b"], "auth-response-header 'a b': expected"),
                (["--auth-url", "http://a/", "--auth-ca", "c"], "auth-ca: no --auth-url begins with https://"),
                (["--auth-url", "http://a/", "--listen", "2=b"], "auth-url: listen :2 passes bytes on unread and"),
                (["--auth-url", "default=http://a/", "--listen", "2"], "auth-url: listen :2 passes bytes on unread"),
                (
                    ["--auth-url", "a=http://b/", "--listen", "sni://2", "--route", "c=a"],
                    "auth-url: listen :2 passes bytes on unread and cannot check them; write https://:2",
                ),
            )
        ),
        (["server", "--insecure", "--auth-header", "Host"], "auth-header 'Host': expected the name of a header"),
        (["server", "--insecure", "--listen", "8080="], "service '': expected 1 to 64"),
        (["provider", "=3000", "--server", "h", "--insecure"], "service '': expected 1 to 64"),
        (
            ["provider", "1", "2", "--server", "h", "--insecure"],
            "both are of the service default; give each its own name, like web=1 ssh=2",
        ),
        (["provider", "1", "--server", "h", "--weight", "0", "--insecure"], "weight 0.0: expected 0.01 to 1,000"),
        (["edge", "--broker", "h", "--workers", "65", "--insecure"], "workers 65: expected 1 to 64"),
        (["edge", "--broker", "h", "--workers", "2", "--listen", "0", "--insecure"], "listen port 0: 2 workers share"),
        (["server", "--insecure", "--listen", "host"], "address 'host': the port is missing"),
        (["server", "--insecure", "--memory", "1"], "need at least 79 MiB"),
        (["server", "--insecure", "--config", "missing.toml"], "file missing.toml: No such file"),
        (["server", "--grase", "1"], "Unknown option: --grase. Did you mean --grace?"),
        (["server", "--grace", "soon"], "--grace 'soon': expected seconds"),
        (["sever"], 'Unknown command "sever"'),
        (["status", "--role", "nobody"], "--role 'nobody': expected one of server, edge"),
        (["demo", "--size", "0"], "size 0: expected 1"),
        (["demo", "--cuts", "-1"], "cuts -1: expected 0"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(
    started: Started, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("goreprox: ")
    assert message in error
    assert error.count("\n") == 1
    assert started.config is None


@pytest.mark.parametrize(("providers", "lines"), [("127.0.0.1:1", 0), (":1", 1), ("example.org:1", 1)])
def test_plaintext_beyond_loopback_warns_in_one_line(
    started: Started, capsys: pytest.CaptureFixture[str], providers: str, lines: int
) -> None:
    server(started, "--providers", providers)
    logger.remove()  # as the end of the process does
    error = capsys.readouterr().err
    assert error.count("\n") == lines
    assert error.count("plaintext") == lines


@pytest.mark.parametrize("text", ["INFO", "Info", "warn", "WARN", "WARNING", "warning"])
@pytest.mark.parametrize("where", ["flag", "variable", "file"])
def test_log_levels_are_accepted_in_any_case(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, where: str
) -> None:
    if where == "variable":
        monkeypatch.setenv("GOREPROX_LOG_LEVEL", text)
    if where == "file":
        (tmp_path / "goreprox.toml").write_text(f'log-level = "{text}"\n')
        monkeypatch.chdir(tmp_path)
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        server(started, *(("--log-level", text) if where == "flag" else ()))
    logger.info("at info")
    logger.warning("at warning")
    logger.remove()
    error = stderr.getvalue()
    assert ("at info" in error) is (text.lower() == "info")
    assert "at warning" in error


def test_an_empty_variable_is_no_file_name(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOREPROX_CONFIG", "")
    assert server(started) == ServerConfig(process=INSECURE)


class Full(io.StringIO):
    """A standard output on a disk that is full."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_unwritable_standard_output_is_one_line_and_leaves_no_token(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    for command in (["keys", "add", "laptop"], ["token", "new", "laptop", "--auth-tokens", "tokens"]):
        assert cli.main(command) == 1
        assert capsys.readouterr().err == "goreprox: cannot write to the standard output: No space left on device\n"
    assert "laptop" not in (tmp_path / "tokens").read_text()


# -- keys


def joined(tmp_path: Path, name: str = "laptop", role: str = "provider") -> tuple[Path, Join]:
    """Make a key by the command, and return its file and what is in it."""
    assert cli.main(["keys", "add", name, "--role", role, "--address", "tunnel.example.org"]) == 0
    path = tmp_path / "state" / "join" / f"{name}.join"
    return path, Join.parse(path.read_text())


def test_a_join_string_may_be_a_flag_a_file_or_a_variable_and_is_all_a_provider_needs(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, join = joined(tmp_path)
    toml = tmp_path / "other.toml"
    ways: list[tuple[list[str], dict[str, str]]] = [
        (["--join", join.text], {}),
        (["--join-file", str(path)], {}),
        ([], {"GOREPROX_JOIN": join.text}),
        ([], {"GOREPROX_JOIN_FILE": str(path)}),
        (["--config", str(toml)], {}),
    ]
    toml.write_text(f'[provider]\njoin-file = "{path}"\n')
    for flags, variables in ways:
        started.config = None
        with monkeypatch.context() as environment:
            for key, value in variables.items():
                environment.setenv(key, value)
            assert cli.main(["provider", "3000", *flags]) == 0
        config = started.config
        assert (config.process.name, config.security, config.servers) == ("laptop", join.security, join.addresses)
        assert join.keys.secret.decode() not in repr(config)
        assert config.servers == (Address("tunnel.example.org", 9887),)
    assert cli.main(["provider", "3000", "--join-file", str(path), "--server", "other:1"]) == 0
    assert started.config.servers == (Address("other", 1),) and started.config.security == join.security


def test_an_edge_joins_with_a_key_for_edges(started: Started, tmp_path: Path) -> None:
    path, join = joined(tmp_path, "front", "edge")
    assert cli.main(["edge", "--join-file", str(path)]) == 0
    assert started.config.brokers == (Address("tunnel.example.org", 9888),)
    assert (started.config.process.name, started.config.security) == ("front", join.security)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edge"], "join string: it is for provider laptop, not for the role edge"),
        (["provider", "1", "--name", "other"], "name other: the join string is for laptop; leave --name out"),
    ],
)
def test_a_join_string_is_for_one_role_and_name(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path, _ = joined(tmp_path)
    assert cli.main([*arguments, "--join-file", str(path)]) == 2
    assert capsys.readouterr().err == f"goreprox: {message}\n"


def test_a_join_file_that_others_can_read_is_rejected(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = joined(tmp_path)
    path.chmod(0o644)
    assert cli.main(["provider", "1", "--join-file", str(path)]) == 1
    assert capsys.readouterr().err == f"goreprox: {path}: others may read it; chmod 600 {path}\n"


def test_no_error_shows_a_join_string(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, join = joined(tmp_path)
    capsys.readouterr()
    for text in (join.text[:-1], join.text[1:], join.text.replace("goreprox", "http")):
        monkeypatch.setenv("GOREPROX_JOIN", text)
        assert cli.main(["provider", "1"]) == 2
    monkeypatch.setenv("GOREPROX_JOIN", join.text)
    assert cli.main(["provider", "1", "--insecure"]) == 2
    assert cli.main(["provider", "1", "--grace", "soon"]) == 2
    captured = capsys.readouterr()
    secret = join.text[30:60]
    assert secret not in captured.out + captured.err


@pytest.mark.parametrize("command", ["server", "broker"])
def test_keys_are_used_by_default_and_their_directory_can_be_chosen(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def state_dir(*flags: str) -> Path | None:
        assert cli.main([command, *flags]) == 0
        found: Path | None = started.config.state_dir
        return found

    assert state_dir() == tmp_path / "state"
    (tmp_path / "goreprox.toml").write_text(f'[{command}]\nstate-dir = "by-file"')
    assert state_dir() == Path("by-file")
    monkeypatch.setenv("GOREPROX_STATE_DIR", "by-variable")
    assert state_dir() == Path("by-variable")
    assert state_dir("--state-dir", "by-flag") == Path("by-flag")
    assert state_dir("--insecure") is None


def test_keys_uses_the_state_directory_of_the_server_and_ignores_other_variables(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    joined(tmp_path)
    capsys.readouterr()
    for content in (
        *('state-dir = "file"', '[server]\nstate-dir = "file"', '[broker]\nstate-dir = "file"'),
        'state-dir = "flag"\n[server]\nstate-dir = "file"',
    ):
        (tmp_path / "goreprox.toml").write_text(content)
        assert cli.main(["keys", "add", "other", "--state-dir", "flag"]) == 0
        assert cli.main(["keys", "add", "third"]) == 0
        capsys.readouterr()
        assert cli.main(["keys", "list"]) == 0
        assert "laptop" not in capsys.readouterr().out
        assert cli.main(["keys", "revoke", "third"]) == 0
        assert cli.main(["keys", "revoke", "other", "--state-dir", "flag"]) == 0
    (tmp_path / "goreprox.toml").unlink()
    monkeypatch.setenv("GOREPROX_NAME", "laptop")
    assert cli.main(["keys", "revoke"]) == 2
    assert cli.main(["keys", "list"]) == 0
    assert "laptop" in capsys.readouterr().out
    monkeypatch.setenv("GOREPROX_STATE_DIR", str(tmp_path / "elsewhere"))
    assert cli.main(["keys", "list"]) == 2
    assert not (tmp_path / "elsewhere").exists(), "only a server, or the first key, makes it"
    assert cli.main(["keys", "add", "laptop"]) == 0
    capsys.readouterr()
    assert cli.main(["keys", "revoke", "none"]) == 2
    assert "key none: there is none" in capsys.readouterr().err


def test_keys_commands_show_authorised_peers_and_no_secret(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["keys", "add", "laptop", "--services", "web, ssh"]) == 0
    path = tmp_path / "state/join/laptop.join"
    assert capsys.readouterr().out == path.read_text()
    assert cli.main(["keys", "list"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "ROLE", "SERVICES", "PUBLISH", "CREATED", "JOIN", "FILE"]
    assert row.startswith("laptop  provider  web, ssh  none     20") and row.endswith(f"  {path}")
    assert cli.main(["keys", "show", "laptop"]) == 0
    shown = capsys.readouterr().out
    assert Join.parse(path.read_text()).keys.public.decode() in shown
    assert cli.main(["keys", "rotate"]) == 0
    assert "1 join string in" in capsys.readouterr().out
    assert path.read_text().strip() not in shown
    assert cli.main(["keys", "revoke", "laptop"]) == 0
    assert not path.exists()


def test_help_shows_defaults_and_units(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["provider", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in ("TARGET", "SECONDS", "MIB", "--dial-timeout", "[default: 10000]", "Lifetimes"):
        assert part in shown


def test_keys_prints_json_for_programs(started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "add", "laptop", "--services", "web,ssh", "--address", "h", "--json"]) == 0
    added = json.loads(capsys.readouterr().out)
    path = tmp_path / "state/join/laptop.join"
    assert added.pop("join") == path.read_text().strip()
    assert added.pop("addresses") == ["h:9887"]
    assert added == {
        "name": "laptop",
        "role": "provider",
        "services": ["web", "ssh"],
        "publish": [],
        "created": added["created"],
        "key": Join.parse(path.read_text()).keys.public.decode(),
        "join_file": str(path),
    }
    assert cli.main(["keys", "add", "any", "--role", "edge"]) == 0
    (tmp_path / "state/join/any.join").unlink()
    capsys.readouterr()
    assert cli.main(["keys", "list", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown[1] == added
    assert (shown[0]["services"], shown[0]["join_file"]) == (None, None)


def test_keys_show_and_change_what_may_be_published(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grants = ["--publish", "http://*.Laptop.Example.com.", "--publish", "tcp://20000-20009"]
    assert cli.main(["keys", "add", "laptop", "--services", "none", *grants]) == 0
    path = tmp_path / "state/authorized/laptop.toml"
    written = tomllib.loads(path.read_text())
    assert written["publish"] == ["http://*.laptop.example.com", "tcp://20000-20009"]
    assert written["services"] == []
    capsys.readouterr()
    assert cli.main(["keys", "list"]) == 0
    assert "laptop  provider  none      http://*.laptop.example.com, tcp://20000-20009  20" in capsys.readouterr().out
    assert cli.main(["keys", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["publish"] == written["publish"]
    assert cli.main(["keys", "show", "laptop"]) == 0
    assert "publish   http://*.laptop.example.com, tcp://20000-20009\n" in capsys.readouterr().out
    assert cli.main(["keys", "set", "laptop", "--publish", "tcp://443"]) == 0
    assert capsys.readouterr().out == "laptop may offer: none\nlaptop may publish: tcp://443\n"
    assert cli.main(["keys", "set", "laptop", "--services", "any"]) == 0
    assert tomllib.loads(path.read_text())["publish"] == ["tcp://443"]
    assert cli.main(["keys", "set", "laptop", "--publish", "none"]) == 0
    assert "publish" not in tomllib.loads(path.read_text())


def test_two_keys_have_a_published_name_only_if_they_share_it(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(["keys", "add", "laptop", "--publish", "http://*.example.com", "--publish", "tcp://20000-20009"]) == 0
    )
    for command, taken in (
        (["add", "friend", "--publish", "http://APP.example.com"], "laptop may publish http://*.example.com"),
        (["add", "friend", "--publish", "tcp://20009-20019"], "laptop may publish tcp://20000-20009"),
        (["set", "other", "--publish", "http://*.a.example.com"], "laptop may publish http://*.example.com"),
    ):
        if command[0] == "set":
            assert cli.main(["keys", "add", "other"]) == 0
        capsys.readouterr()
        assert cli.main(["keys", *command]) == 2
        error = capsys.readouterr().err
        assert taken in error and "--share" in error
        assert not (tmp_path / "state/authorized/friend.toml").exists()
        assert cli.main(["keys", *command, "--share"]) == 0
        assert cli.main(["keys", "revoke", command[1]]) == 0
    assert cli.main(["keys", "set", "laptop", "--publish", "http://*.example.com"]) == 0, "it has it itself"
    assert cli.main(["keys", "add", "friend", "--publish", "http://example.com", "--publish", "tcp://20009"]) == 0


def test_only_providers_publish(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "add", "friend", "--role", "edge", "--publish", "http://app.example.com"]) == 2
    assert "publish http://app.example.com: only providers publish; friend is an edge" in capsys.readouterr().err


def test_keys_set_changes_the_services_of_a_key_and_nothing_else(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["keys", "add", "laptop", "--services", "web"]) == 0
    path = tmp_path / "state/authorized/laptop.toml"
    before = tomllib.loads(path.read_text())
    for given, services in (("web,ssh", ["web", "ssh"]), ("any", None), ("db", ["db"])):
        assert cli.main(["keys", "set", "laptop", "--services", given]) == 0
        after = tomllib.loads(path.read_text())
        assert after.pop("services", None) == services
        assert after == {key: value for key, value in before.items() if key != "services"}
        assert path.stat().st_mode & 0o777 == 0o600
    for arguments, message in (
        (["keys", "set", "none", "--services", "web"], "key none: there is none"),
        (["keys", "set", "laptop", "--services", "a b"], "service 'a b': expected"),
        (["keys", "set", "laptop"], "--services or --publish is missing"),
    ):
        capsys.readouterr()
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_windows_is_not_supported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert cli.main(["--version"]) == 1
    assert "Windows is not supported" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_have_commands_and_options(shell: Any) -> None:
    script = app.generate_completion(shell=shell)
    assert "provider" in script
    assert "grace" in script


def test_version_and_help_import_no_networking() -> None:
    code = (
        "import sys; from goreprox.cli.main import main; main(['--version']); main(['server', '--help']);"
        "print(sorted({'zmq', 'asyncio', 'cbor2', 'loguru'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f"{__version__} (")
    assert shown.endswith("[]\n")


def test_a_role_imports_no_other_role_and_no_other_command(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text("grace = 5\nlisten = ['8080']")
    code = (
        "import sys, goreprox.roles.provider as role\n"
        "async def run(configuration, _): assert configuration.current.connections.grace_s == 5\n"
        "role.run = run\n"
        "from goreprox.cli.main import main\n"
        "assert main(['provider', '3000', '--server', 'h', '--insecure']) == 0\n"
        "others = ('goreprox.http', 'goreprox.roles.edge', 'goreprox.cli.demo', 'goreprox.cli.status', 'rich')\n"
        "print([name for name in others if name in sys.modules])"
    )
    environment = {**os.environ, "GOREPROX_CONFIG": str(file), "GOREPROX_LISTEN": "8080"}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


@pytest.mark.parametrize("arguments", [("add", "a"), ("list",), ("show", "nobody"), ("revoke", "a"), ("rotate",)])
def test_keys_imports_nothing_once_root_has_become_another_user(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert cli.main(["keys", "add", "a" if arguments[0] == "revoke" else "b", "--state-dir", str(tmp_path)]) == 0
    code = (
        "import sys, goreprox.cli.keys as keys\n"
        "from goreprox.cli.main import main\n"
        "really, before = keys.become_owner, set()\n"
        "def become(path): before.update(sys.modules); return really(path)\n"
        "keys.become_owner = become\n"
        "main(['keys', *sys.argv[1:]])\n"
        "print(sorted(sys.modules.keys() - before), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments, "--state-dir", str(tmp_path)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    assert shown.splitlines()[-1] == "[]"


def test_the_document_has_every_option_as_flag_variable_and_key() -> None:
    document = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        for key in sources.keys(command):
            assert f"`GOREPROX_{key.upper().replace('-', '_')}` | `{key}` |" in document
            assert f"`--{key}" in document


def test_a_new_token_is_printed_once_and_its_hash_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokens.toml"
    file = ("--auth-tokens", str(path))
    assert cli.main(["token", "new", "alice", *file, "--services", "web, db", "--expires", "2030-01-01"]) == 0
    first = capsys.readouterr().out.strip()
    assert cli.main(["token", "new", "bob", *file]) == 0
    second = capsys.readouterr().out.strip()
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert first not in text
    known = Tokens.parse(text)
    alice, bob = (known.find(value.encode(), now=0) for value in (first, second))
    assert alice is not None
    assert bob is not None
    assert (alice.name, alice.services, alice.expires) == ("alice", {"web", "db"}, 1893456000)
    assert (bob.name, bob.services, bob.expires) == ("bob", None, float("inf"))
    assert cli.main(["token", "new", "bob", *file]) == 2
    assert "token bob: there is one already" in capsys.readouterr().err
    assert cli.main(["token", "new", "a", "--auth-tokens", str(tmp_path / "none" / "t")]) == 1
    assert path.read_text() == text


def test_a_token_file_keeps_its_symbolic_links_and_its_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "tokens.toml", tmp_path / "link"
    link.symlink_to(path)
    for command in ("new", "revoke"):
        assert cli.main(["token", command, "alice", "--auth-tokens", str(link)]) == 0
        assert link.is_symlink() and path.is_file()
        assert path.stat().st_mode & 0o777 == (0o600 if command == "new" else 0o640)
        path.chmod(0o640)


def test_tokens_are_listed_without_hashes_and_revoked_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens.toml"
    file = ("--auth-tokens", str(path))
    assert cli.main(["token", "new", "alice", *file, "--services", "web, db", "--expires", "2901-01-01"]) == 0
    text = path.read_text().replace("2901", "2001")
    path.write_text("# who may come in\n" + text + "\n# the other one\n")
    assert cli.main(["token", "new", "bob", *file]) == 0
    capsys.readouterr()
    assert cli.main(["token", "list", *file]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME   SERVICES  EXPIRES",
        "alice  db, web   2001-01-01T00:00:00+00:00 (expired)",
        "bob    any       never",
    ]
    assert cli.main(["token", "revoke", "bob", *file]) == 0
    text = path.read_text()
    assert Tokens.parse(text).names == {"alice"}
    assert text.startswith("# who may come in\n")
    assert "# the other one" in text
    assert cli.main(["token", "revoke", "alice", *file]) == 0
    assert not Tokens.parse(path.read_text()).names
    for arguments, message in (
        (["revoke", "alice", *file], "token alice: there is none; `goreprox token list` shows all"),
        (
            ["list", "--auth-tokens", str(tmp_path / "none")],
            "No such file or directory; `goreprox token new NAME --auth-tokens ",
        ),
    ):
        capsys.readouterr()
        assert cli.main(["token", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    "form",
    [
        '# a comment\n[tokens]\nbob.sha256 = "{0}"\nalice.sha256 = "{1}"\n',
        '# a comment\ntokens = {{ bob = {{ sha256 = "{0}" }}, alice = {{ sha256 = "{1}" }} }}\n',
        '# a comment\n[tokens.alice]\nsha256 = "{1}"\n[tokens."bob"]\nsha256 = "{0}"\n',
    ],
)
def test_a_token_is_revoked_in_whatever_form_it_is_written(tmp_path: Path, form: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(form.format("0" * 64, "1" * 64))
    path.chmod(0o600)
    assert cli.main(["token", "revoke", "bob", "--auth-tokens", str(path)]) == 0
    left = path.read_text()
    assert Tokens.parse(left).names == {"alice"}
    assert left.startswith("# a comment\n")


def test_on_a_full_disk_tokens_are_revoked_but_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens"
    for name in ("a", "b"):
        assert cli.main(["token", "new", name, "--auth-tokens", str(path)]) == 0
    before = path.stat()
    really_open = os.open

    def full(name: Any, flags: int, *args: Any, **named: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        return really_open(name, flags, *args, **named)

    monkeypatch.setattr(os, "open", full)
    capsys.readouterr()
    assert cli.main(["token", "new", "c", "--auth-tokens", str(path)]) == 1
    assert "No space left on device; free some space" in capsys.readouterr().err
    assert cli.main(["token", "revoke", "a", "--auth-tokens", str(path)]) == 0
    assert Tokens.parse(path.read_text()).names == {"b"}
    assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)
