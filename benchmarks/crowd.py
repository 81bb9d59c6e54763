"""Many providers in one process: `python -m benchmarks.crowd COUNT SERVER_PORT TARGET_PORT FOLDER`.

Each is a whole one, with a link of its own. Prints a line once all of them are connected; they end with the process.
"""

import asyncio
import sys
from pathlib import Path

from benchmarks.local import HOST, raise_descriptor_limit
from brokers import Role
from goreprox.config.addresses import Address, Target
from goreprox.config.process import ProcessConfig
from goreprox.config.roles import ProviderConfig
from goreprox.net.link_tls import Trust
from goreprox.process.log import configure
from goreprox.roles.links import Links
from goreprox.roles.member import Member
from goreprox.roles.provider import Provider


def _start(number: int, server_port: int, target_port: int, folder: Path) -> Links:
    config = ProviderConfig(
        targets=(Target("default", Address(HOST, target_port)),),
        servers=(Address(HOST, server_port),),
        process=ProcessConfig(name=f"crowd{number}", runtime_dir=folder),
    )
    member = Member(config.process, "provider", Role.PROVIDER, services=config.services)
    provider = Provider(config)
    provider.introduce(member)
    return member.link(config.servers, config.proxy, Trust(None, ()), provider.driver, None)


async def _run(count: int, server_port: int, target_port: int, folder: Path) -> None:
    started = [_start(number, server_port, target_port, folder) for number in range(count)]
    for links in started:
        await links.up.wait()
    print("up", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    configure("warning", as_json=False)
    raise_descriptor_limit()
    count, server_port, target_port = map(int, sys.argv[1:4])
    asyncio.run(_run(count, server_port, target_port, Path(sys.argv[4])))
