"""Many providers in one process: `python -m benchmarks.crowd COUNT PORT[,…] TARGET_PORT FOLDER [JOIN_FILE]`.

Each is a whole one, with links of its own to the servers at all ports. Prints `up` once all of them are connected,
`down` when one is not, and so on; they end with the process. With a join file all have its name and its key.
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.local import HOST, raise_descriptor_limit
from brokers import Role
from goreprox.config.addresses import Address, Target
from goreprox.config.process import ProcessConfig
from goreprox.config.roles import ProviderConfig
from goreprox.keys.join import Join
from goreprox.net.link_tls import Trust
from goreprox.process.log import configure
from goreprox.roles.links import Links
from goreprox.roles.member import Member
from goreprox.roles.provider import Provider


def _start(number: int, server_ports: Sequence[int], target_port: int, folder: Path, join: Join | None) -> Links:
    config = ProviderConfig(
        targets=(Target("default", Address(HOST, target_port)),),
        servers=tuple(Address(HOST, port) for port in server_ports),
        process=ProcessConfig(name=f"crowd{number}" if join is None else join.name, runtime_dir=folder),
        security=None if join is None else join.security,
    )
    member = Member(config.process, "provider", Role.PROVIDER, services=config.services)
    provider = Provider(config)
    provider.introduce(member)
    return member.link(config.servers, config.proxy, Trust(None, ()), provider.driver, config.security)


async def _run(count: int, server_ports: Sequence[int], target_port: int, folder: Path, join: Join | None) -> None:
    started = [_start(number, server_ports, target_port, folder, join) for number in range(count)]
    changed, was_up = asyncio.Event(), False
    for links in started:
        links.changed = changed.set
    while True:
        is_up = all(links.down_s == 0 for links in started)
        if is_up != was_up:
            print("up" if is_up else "down", flush=True)
            was_up = is_up
        await changed.wait()
        changed.clear()


if __name__ == "__main__":
    configure("error", as_json=False)  # each link warns of an outage
    raise_descriptor_limit()
    count, ports, target_port = int(sys.argv[1]), list(map(int, sys.argv[2].split(","))), int(sys.argv[3])
    joining = Join.parse(Path(sys.argv[5]).read_text().strip()) if len(sys.argv) > 5 else None
    asyncio.run(_run(count, ports, target_port, Path(sys.argv[4]), joining))
