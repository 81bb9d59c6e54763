"""Sessions on carriers, sockets on streams."""
