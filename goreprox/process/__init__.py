"""The life of a process; knows no network."""
