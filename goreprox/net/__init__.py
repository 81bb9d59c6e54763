"""Sockets of clients and targets; knows no stream."""
