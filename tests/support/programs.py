"""Programs that others wrote, each in a folder of its own on a port of its own, ended by its process id."""

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import Tunnel
from tests.support.sockets import HOST
from tests.support.waiting import DEADLINE_S

NO_SKIP = "TESTS_NO_SKIP"
_BUILT = Path(__file__).parents[2] / "build/bin"  # where .ci/run puts programs that it builds
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # sshd as root does not start without this empty folder


def program(name: str) -> str:
    """Find a program; skip the test where it is missing, or fail it where nothing may be skipped."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", str(_BUILT)])
    found = shutil.which(name, path=search)
    if found is None:
        if os.environ.get(NO_SKIP):
            pytest.fail(f"the program {name} is missing, and {NO_SKIP} is set")
        pytest.skip(f"the program {name} is missing")
    return found


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Hold a free port, so that no one but a server that is told its number takes it.

    A bound socket that does not listen lets another one bind to its port if both have `SO_REUSEADDR`, as the
    servers here do; meanwhile the kernel gives the port to no connection.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((HOST, 0))
        yield holder.getsockname()[1]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 5)
    if process.returncode is None:
        process.kill()
    await process.wait()


async def _responds(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.transport.abort()
    return True


@contextlib.asynccontextmanager
async def daemon(tmp: Path, port: int, *argv: str, env: dict[str, str] | None = None) -> AsyncIterator[None]:
    """Run a server in the foreground from when it responds on `port` to the end of the context."""
    log = tmp / f"{Path(argv[0]).name}.log"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=DEVNULL, stdout=sink, stderr=STDOUT, cwd=tmp, env={**os.environ, **(env or {})}
        )
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await _responds(port):
                assert process.returncode is None, f"{argv[0]} ended: {log.read_text()}"
                await asyncio.sleep(0.05)
        yield
    finally:
        await _end(process)


@contextlib.asynccontextmanager
async def running(*argv: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """Run a client and give its standard output; it ends with the context at the latest."""
    process = await asyncio.create_subprocess_exec(*argv, stdin=DEVNULL, stdout=PIPE, limit=1 << 20)
    assert process.stdout is not None
    try:
        yield process, process.stdout
    finally:
        await _end(process)
        await process.stdout.read()  # the pipe's transport closes at the end of file


async def output_of(*argv: str, code: int = 0, deadline_s: float = DEADLINE_S) -> str:
    """Run a client to its end, which must be `code`; return what it printed."""
    async with running(*argv) as (process, stdout), asyncio.timeout(deadline_s):
        printed = (await stdout.read()).decode()
        assert await process.wait() == code, f"{argv} ended with {process.returncode}: {printed}"
        return printed


@contextlib.asynccontextmanager
async def tunnel_to(
    tmp: Path, target: int, *, scheme: str = "tcp", server: tuple[str, ...] = ()
) -> AsyncIterator[Tunnel]:
    """A tunnel to a port of another program, up and connected."""
    made = Tunnel(tmp)
    async with made._stack:
        made.scheme = scheme
        await made.serve(*server)
        await made.provide(target=target)
        yield made


@contextlib.asynccontextmanager
async def nginx(tmp: Path, root: Path, *, behind: str | None = None, log: Path | None = None) -> AsyncIterator[int]:
    """Serve the files of `root`, those below `/chunked/` without a length; give the port.

    `behind` proxies of these addresses it asks for the PROXY protocol, and says in each response what it was told.
    In `log` it writes the first line of each request.
    """
    told = (
        ""
        if behind is None
        else (
            f"set_real_ip_from {behind}; real_ip_header proxy_protocol; "
            "add_header Seen-Client $remote_addr:$remote_port; "
            "add_header Seen-Destination $proxy_protocol_server_addr:$proxy_protocol_server_port;"
        )
    )
    with reserved_port() as port:
        server = f"""
            access_log {"off" if log is None else f"{log} line"};
            sendfile on;
            gzip on;
            gzip_types *;
            server {{
                listen {HOST}:{port}{"" if behind is None else " proxy_protocol"};
                {told}
                root {root};
                location /chunked/ {{ ssi on; ssi_types *; alias {root}/; }}
            }}
        """
        async with _nginx(tmp, port, server):
            yield port


@contextlib.asynccontextmanager
async def nginx_that_tells(tmp: Path) -> AsyncIterator[int]:
    """Run an nginx that passes requests on, and says in the field `Seen` how it has read each; give the port.

    `Seen` is method, target, host and body, or `?` for one with spaces or control characters, with `|` between them.
    """
    with reserved_port() as port:
        server = f"""
            access_log off;
            lingering_close always;
            client_header_buffer_size 16k;
            map $request_body $told {{ "~[\\x00-\\x20\\x7f]" "?"; default $request_body; }}
            server {{
                listen {HOST}:{port};
                location / {{
                    proxy_pass http://unix:{tmp}/target:/;
                    proxy_ignore_client_abort on;  # the end of file is there before the response
                    add_header Seen "$request_method|$request_uri|$host|$told" always;
                }}
            }}
            server {{
                listen unix:{tmp}/target;
                return 200 ok;
            }}
        """
        async with _nginx(tmp, port, server):
            yield port


@contextlib.asynccontextmanager
async def nginx_before(tmp: Path, target: int) -> AsyncIterator[int]:
    """Run an nginx that passes requests on to a port; give its own."""
    with reserved_port() as port:
        server = f"""
            access_log off;
            server {{
                listen {HOST}:{port};
                location / {{ proxy_pass http://{HOST}:{target}; proxy_http_version 1.1; }}
            }}
        """
        async with _nginx(tmp, port, server):
            yield port


@contextlib.asynccontextmanager
async def _nginx(tmp: Path, port: int, http: str) -> AsyncIterator[None]:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {tmp}/{kind};" for kind in kinds)
    configuration = tmp / "nginx.conf"
    configuration.write_text(
        f"""
        daemon off;
        master_process off;
        pid {tmp}/nginx.pid;
        error_log stderr;
        events {{ worker_connections 1024; }}
        http {{
            log_format line '$request';
            {temporary}
            {http}
        }}
        """
    )
    argv = (program("nginx"), "-e", "stderr", "-p", str(tmp), "-c", str(configuration))
    async with daemon(tmp, port, *argv):
        yield


@contextlib.asynccontextmanager
async def redis(tmp: Path) -> AsyncIterator[int]:
    """Run an empty Redis that saves nothing; give the port."""
    with reserved_port() as port:
        options = {"port": str(port), "bind": HOST, "dir": str(tmp), "save": "", "appendonly": "no"}
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        async with daemon(tmp, port, program("redis-server"), *flags):
            yield port


@dataclass(frozen=True, slots=True)
class Sshd:
    """A running sshd, and what a client needs to log in."""

    port: int
    user: str
    options: tuple[str, ...]


async def _key(path: Path) -> str:
    """Make a key pair; return the public one."""
    await output_of(program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(path))
    return path.with_suffix(".pub").read_text()


def _make_privilege_separation_folder() -> None:
    if os.geteuid() == 0:
        _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)


@contextlib.asynccontextmanager
async def sshd(tmp: Path) -> AsyncIterator[Sshd]:
    """Let this user, with a new key, log in to this machine."""
    _make_privilege_separation_folder()
    host_key = await _key(tmp / "host_key")
    (tmp / "authorized_keys").write_text(await _key(tmp / "user_key"))
    (tmp / "known_hosts").write_text(f"tunnelled {host_key}")
    with reserved_port() as port:
        (tmp / "sshd_config").write_text(
            f"ListenAddress {HOST}:{port}\nHostKey {tmp}/host_key\nAuthorizedKeysFile {tmp}/authorized_keys\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "UsePAM no\nStrictModes no\nPidFile none\nSubsystem sftp internal-sftp\n"
        )
        options = {
            "IdentityFile": f"{tmp}/user_key", "IdentitiesOnly": "yes", "BatchMode": "yes",
            "UserKnownHostsFile": f"{tmp}/known_hosts", "HostKeyAlias": "tunnelled",
            "StrictHostKeyChecking": "yes",
        }  # fmt: skip
        flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        async with daemon(tmp, port, program("sshd"), "-D", "-e", "-f", f"{tmp}/sshd_config"):
            yield Sshd(port, pwd.getpwuid(os.geteuid()).pw_name, ("-F", "none", *flags))
