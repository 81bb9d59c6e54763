"""Keys as files and texts: join strings, the state directory, and who is authorised at this moment.

What keys do on the wire, `brokers.keys` knows; what the user types, `goreprox.cli.main` and `goreprox.cli.keys`.
"""
