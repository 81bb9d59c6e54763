"""goreprox as if it spoke other versions: the first argument names the oldest and newest of session and fabric."""

import json
import sys

import goreprox.cli.main
import goreprox.roles.member
import goreprox.tunnel.driver

if __name__ == "__main__":
    session, fabric = json.loads(sys.argv.pop(1))
    named = {
        "VERSION_LEAST": session[0],
        "VERSION": session[1],
        "FABRIC_VERSION_LEAST": fabric[0],
        "FABRIC_VERSION": fabric[1],
    }
    for name, module in list(sys.modules.items()):
        if name.startswith(("goreprox.protocol.", "goreprox.tunnel.", "goreprox.roles.member", "brokers.")):
            for constant in named.keys() & vars(module).keys():
                setattr(module, constant, named[constant])
    sys.exit(goreprox.cli.main.main())
