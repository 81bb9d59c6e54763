"""The session protocol, sans-IO: no asyncio, sockets, ZeroMQ, clock, randomness or logging in here."""
