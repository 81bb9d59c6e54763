"""Goreprox: a reverse tunnel for TCP whose connections outlive the tunnel."""

__version__ = "0.1.0"
