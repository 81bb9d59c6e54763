"""The command `doctor` beside processes that run: what it prints, its exit code, and that nobody notices it."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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


async def doctor(made: Secured, *arguments: str, before: str = "") -> Done:
    """Run `goreprox doctor` as a shell does, after the command `before`."""
    line = f'{before} exec "$0" -m goreprox doctor "$@"'
    command = ["/bin/sh", "-c", line, sys.executable, *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GOREPROX_")}
    environment["GOREPROX_RUNTIME_DIR"] = str(made.tmp / "run")
    done = await asyncio.to_thread(
        subprocess.run,
        command,
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


async def test_a_doctor_beside_a_provider_of_the_same_name_disturbs_nobody(tmp_path: Path) -> None:
    async with secured(tmp_path, echo) as made:
        provider = await made.provide()
        reader, writer = await made.connect()
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        locks = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix != ".sock"}
        warnings, peers = warned(made.server, provider), made.server.events("peer_up")
        for _ in range(3):
            done = await doctor(made, *as_provider(made))
            assert done.code == 0, done
            assert "join" in done.out and "provider default is welcome" in done.out
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix != ".sock"} == locks
        writer.write(b"after")
        assert await reader.readexactly(5) == b"after"
        await made.transfers()
        assert warned(made.server, provider) == warnings
        assert made.server.events("peer_up") == peers and not provider.events("link_lost")
        writer.transport.abort()


async def test_what_is_wrong_is_in_the_exit_code_and_in_json(tmp_path: Path) -> None:
    async with secured(tmp_path, echo) as made:
        done = await doctor(made, *as_provider(made), "--json")
        assert done.code == 0 and set(done.states.values()) == {"ok"}, done
        done = await doctor(made, "provider", "x=1", "--server", f"{HOST}:{made.providers}", "--insecure", "--json")
        assert done.code == 1
        assert done.states["join"] == done.states["target"] == "failed" and done.states["zmtp"] == "ok"
        assert "2 checks failed" in done.err


async def test_a_revoked_key_is_named(tmp_path: Path) -> None:
    async with secured(tmp_path, echo) as made:
        copy = tmp_path / "copy.join"
        copy.write_text(made.join_file("default").read_text())
        copy.chmod(0o600)
        await made.keys("revoke", "default")
        arguments = ("provider", f"{HOST}:{made.target_port}", "--server", f"{HOST}:{made.providers}")

        async def refused() -> bool:
            return "does not know our key" in (await doctor(made, *arguments, "--join-file", str(copy))).out

        async with asyncio.timeout(DOCTOR_S):
            while not await refused():  # the server looks for changes twice a second
                pass


async def test_a_server_that_runs_is_asked_for_its_providers(tmp_path: Path) -> None:
    async with secured(tmp_path, echo) as made:
        done = await doctor(made, *as_server(made), "--json")
        assert done.code == 1
        assert done.states["service"] == "failed" and done.states["running"] == done.states["port"] == "ok"
        await made.provide()
        await eventually(lambda: made.server.events("peer_up"), "the server knows it")
        done = await doctor(made, *as_server(made), "--json")
        assert done.code == 0 and set(done.states.values()) == {"ok"}, done


async def test_limits_of_the_process_count(tmp_path: Path) -> None:
    async with secured(tmp_path, echo) as made:
        done = await doctor(made, *as_provider(made), "--json", before="ulimit -n 1000;")
        assert done.states["descriptors"] == "failed" and done.code == 1
        fewer = ("--max-connections", "900")
        assert (await doctor(made, *as_provider(made), *fewer, before="ulimit -n 1000;")).code == 0
        done = await doctor(made, *as_provider(made), "--json", "--memory", "1023GiB")
        assert done.states["memory"] == "failed"


async def test_options_are_checked_first_and_each_role_of_a_file(tmp_path: Path) -> None:
    made = Secured(tmp_path)
    done = await doctor(made, "provider")
    assert done.code == 1 and "options" in done.out and "target: none is given" in done.out
    done = await doctor(made)
    assert done.code == 2 and "goreprox doctor server" in done.err
    (tmp_path / "goreprox.toml").write_text(
        f'[server]\nlisten = "{HOST}:0"\nproviders = "{HOST}:0"\ninsecure = true\n[broker]\ngrase = 1'
    )
    assert "grase is not an option" in (await doctor(made)).out
    (tmp_path / "goreprox.toml").write_text(
        f'insecure = true\n[server]\nlisten = "{HOST}:0"\nproviders = "{HOST}:0"\n[broker]\nproviders = "{HOST}:0"'
    )
    out = (await doctor(made, "--json")).out
    assert {each["role"] for each in json.loads(out)["checks"]} == {"server", "broker"}
