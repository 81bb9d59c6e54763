"""One process each: server, edge, broker, provider, workers."""
