"""What the line `ready` says of ports and services."""

from goreprox.config.addresses import Listener
from goreprox.config.clients import ClientConfig
from goreprox.config.routes import Route
from goreprox.roles.entrances import entrances


def test_each_port_is_named_once_with_its_services() -> None:
    listeners = tuple(map(Listener.parse, ("8080=web", "2222=ssh", "http://8081")))
    routes = (Route.parse("a.example=web"), Route.parse("*=api"))
    config = ClientConfig(listeners=listeners, routes=routes)
    found = [(listener, listener.address.port) for listener in listeners for _family in (4, 6)]
    assert entrances(config, found) == "clients on :8080 (web), :2222 (ssh), http://:8081 (api, web)"
