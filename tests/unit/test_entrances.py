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


def test_routes_of_tls_are_for_ports_that_pass_it_on() -> None:
    listeners = tuple(map(Listener.parse, ("http://80", "sni://443", "sni://8443=rest")))
    passed, ended = Route.parse("tls://a.example=far"), Route.parse("b.example=web")
    found = [(listener, listener.address.port) for listener in listeners]
    both = entrances(ClientConfig(listeners=listeners, routes=(passed, ended)), found)
    assert both == "clients on http://:80 (web), sni://:443 (far, web), sni://:8443 (far, rest, web)"
    one = entrances(ClientConfig(listeners=listeners[:2], routes=(passed,)), found[:2])
    assert one == "clients on http://:80 (default), sni://:443 (far)"
