"""Goreprox: a reverse tunnel for TCP whose connections outlive the tunnel."""

try:
    from goreprox._version import __version__ as __version__
except ImportError:  # a tree that was never built or installed
    __version__ = "0.0"
