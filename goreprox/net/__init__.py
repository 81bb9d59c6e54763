"""Sockets of clients and targets: listening, access rules, TLS, the PROXY protocol, readiness."""
