"""Asks a running process for something, and replies: one request and one reply over a Unix socket."""
