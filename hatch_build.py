"""Compiles the modules through which every byte passes, by mypyc, when a wheel is built with it: docs/deploy.md.

The sources stay in the wheel: Python prefers an extension module to the source beside it.
"""

import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "goreprox"
"""One library has all modules, so that calls between them are direct: `goreprox__mypyc`, which they load."""


class CompileHook(BuildHookInterface[Any]):
    """Adds the extension modules to a wheel. Its option `modules` names what is compiled, as patterns of paths."""

    def dependencies(self) -> list[str]:
        """Return what this needs beside a C compiler and Python's headers; what we import is needed for its types."""
        return ["mypy[mypyc]>=2.4,<3", *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and make the wheel one for this Python and this kind of machine; an editable one stays as it is."""
        if version == "editable":
            return
        root = Path(self.root)
        paths = [path for pattern in self.config["modules"] for path in root.glob(pattern)]
        modules = sorted(str(path.relative_to(root)) for path in paths if path.name != "__init__.py")
        self._built = tempfile.TemporaryDirectory(prefix="goreprox-compiled-")
        built = Path(self._built.name)
        _compile(modules, built)
        for path in built.rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"):
            build_data["force_include"][str(path)] = str(path.relative_to(built))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what is in the wheel now."""
        if version != "editable":
            self._built.cleanup()


def _compile(modules: list[str], directory: Path) -> None:
    """Build extension modules in `directory`; the working directory is that of the sources."""
    from mypyc.build import mypycify  # noqa: PLC0415 -- there only if it is asked for
    from setuptools import Distribution  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as temporary:
        extensions = mypycify(modules, group_name=LIBRARY, target_dir=f"{temporary}/c")
        distribution = Distribution({"name": LIBRARY, "ext_modules": extensions})
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(directory), temporary
        distribution.run_command("build_ext")
