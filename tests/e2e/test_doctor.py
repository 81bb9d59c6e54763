"""The command `doctor` beside processes that run: what it prints, its exit code, and that nobody notices it."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.secured import Secured, secured
from tests.support.processes import Process
from tests.support.sockets import HOST
from tests.support.traffic import echo
from tests.support.waiting import eventually

DOCTOR_S = 120.0


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def states(self) -> dict[str, str]:
        """The state of each check; of several of one kind the worst."""
        order = ("ok", "warning", "failed")
        found: dict[str, str] = {}
        for each in json.loads(self.out)["checks"]:
            found[each["check"]] = max(found.get(each["check"], "ok"), each["state"], key=order.index)
        return found


async def doctor(
    made: Secured, *arguments: str, code: int, before: str = "", until: Callable[[Done], object] = lambda _: True
) -> Done:
    """Run `goreprox doctor` as a shell does, after the command `before`, until it has ended so and with this code.

    Its own deadlines are for people: on a busy machine it may report that a process does not respond.
    """
    give_up = time.monotonic() + DOCTOR_S
    while True:
        done = await _run(made, arguments, before)
        if done.code == code and until(done):
            return done
        assert time.monotonic() < give_up, done


async def _run(made: Secured, arguments: Sequence[str], before: str) -> Done:
    line = f'{before} exec "$0" -m goreprox doctor "$@"'
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GOREPROX_")}
    environment["GOREPROX_RUNTIME_DIR"] = str(made.tmp / "run")
    done = await asyncio.to_thread(
        subprocess.run,
        ["/bin/sh", "-c", line, sys.executable, *arguments],
        cwd=made.tmp,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=DOCTOR_S,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def as_provider(made: Secured) -> tuple[str, ...]:
    return (
        "provider",
        f"{HOST}:{made.target_port}",
        *("--server", f"{HOST}:{made.providers}", "--join-file", str(made.join_file("default"))),
    )


def as_server(made: Secured) -> tuple[str, ...]:
    return (
        "server",
        *("--listen", f"{HOST}:{made.port}", "--providers", f"{HOST}:{made.providers}"),
        *("--state-dir", str(made.state)),
    )


def warned(*processes: Process) -> list[dict[str, object]]:
    return [entry for each in processes for entry in each.log if entry.get("level") in ("warning", "error")]


@pytest.mark.long
async def test_a_doctor_beside_a_provider_of_the_same_name_disturbs_nobody(tmp_path: Path) -> None:
    async with secured(tmp_path, echo) as made:
        provider = await made.provide()
        reader, writer = await made.connect()
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        locks = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix != ".sock"}
        warnings, peers = warned(made.server, provider), made.server.events("peer_up")
        for _ in range(3):
            done = await doctor(made, *as_provider(made), code=0)
            assert "join" in done.out and "provider default is welcome" in done.out
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix != ".sock"} == locks
        writer.write(b"after")
        assert await reader.readexactly(5) == b"after"
        await made.transfers()
        assert warned(made.server, provider) == warnings, made.server.log
        assert made.server.events("peer_up") == peers and not provider.events("link_lost")
        writer.transport.abort()


async def test_what_is_wrong_is_in_the_exit_code_and_in_json(tmp_path: Path) -> None:
    async with secured(tmp_path, echo) as made:
        done = await doctor(made, *as_provider(made), "--json", code=0)
        assert set(done.states.values()) == {"ok"}
        arguments = ("provider", "x=1", "--server", f"{HOST}:{made.providers}", "--insecure", "--json")
        done = await doctor(made, *arguments, code=1, until=lambda done: done.states["zmtp"] == "ok")
        assert done.states["join"] == done.states["target"] == "failed"
        assert "2 checks failed" in done.err


async def test_a_revoked_key_is_named(tmp_path: Path) -> None:
    async with secured(tmp_path, echo) as made:
        copy = tmp_path / "copy.join"
        copy.write_text(made.join_file("default").read_text())
        copy.chmod(0o600)
        await made.keys("revoke", "default")
        arguments = ("provider", f"{HOST}:{made.target_port}", "--server", f"{HOST}:{made.providers}")
        # The server looks for changes twice a second.
        await doctor(
            made, *arguments, "--join-file", str(copy), code=1, until=lambda done: "does not know our key" in done.out
        )


async def test_a_server_that_runs_is_asked_for_its_providers(tmp_path: Path) -> None:
    async with secured(tmp_path, echo) as made:
        done = await doctor(made, *as_server(made), "--json", code=1, until=lambda done: done.states["running"] == "ok")
        assert done.states["service"] == "failed" and done.states["port"] == "ok"
        await made.provide()
        await eventually(lambda: made.server.events("peer_up"), "the server knows it")
        done = await doctor(made, *as_server(made), "--json", code=0)
        assert set(done.states.values()) == {"ok"}


@pytest.mark.long
async def test_limits_of_the_process_count(tmp_path: Path) -> None:
    async with secured(tmp_path, echo) as made:
        few = "ulimit -n 1000;"
        done = await doctor(made, *as_provider(made), "--json", code=1, before=few)
        assert done.states["descriptors"] == "failed"
        await doctor(made, *as_provider(made), "--max-connections", "900", code=0, before=few)
        done = await doctor(made, *as_provider(made), "--json", "--memory", "1023GiB", code=1)
        assert done.states["memory"] == "failed"


async def test_options_are_checked_first_and_each_role_of_a_file(tmp_path: Path) -> None:
    made = Secured(tmp_path)
    done = await doctor(made, "provider", code=1)
    assert "options" in done.out and "target: none is given" in done.out
    assert "goreprox doctor server" in (await doctor(made, code=2)).err
    (tmp_path / "goreprox.toml").write_text(
        f'[server]\nlisten = "{HOST}:0"\nproviders = "{HOST}:0"\ninsecure = true\n[broker]\ngrase = 1'
    )
    assert "grase is not an option" in (await doctor(made, code=1)).out
    (tmp_path / "goreprox.toml").write_text(
        f'insecure = true\n[server]\nlisten = "{HOST}:0"\nproviders = "{HOST}:0"\n[broker]\nproviders = "{HOST}:0"'
    )
    out = (await doctor(made, "--json", code=0)).out
    assert {each["role"] for each in json.loads(out)["checks"]} == {"server", "broker"}
