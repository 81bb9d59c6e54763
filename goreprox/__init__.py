"""Goreprox: a reverse tunnel for TCP whose connections outlive the tunnel."""

import importlib.util

try:
    from goreprox._version import __version__ as __version__
except ImportError:  # a tree that was never built or installed
    __version__ = "0.0"


def build() -> str:
    """Return `compiled` if the modules through which every byte passes are (hatch_build.py), else `pure Python`."""
    spec = importlib.util.find_spec("goreprox.protocol.session")
    return "pure Python" if spec is None or str(spec.origin).endswith(".py") else "compiled"
