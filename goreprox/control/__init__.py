"""Asks a running process for something, and answers: one request and one reply over a Unix socket."""
