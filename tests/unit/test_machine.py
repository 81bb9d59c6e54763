"""Limits of memory, and containers, as the files of the kernel and of container engines tell them."""

import os
from pathlib import Path

import pytest

from goreprox.process.machine import in_container, memory_limit_bytes

MIB = 1 << 20


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_the_limit_is_the_memory_of_the_machine(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("group", "limits"), [("/a/b", ("max", "64")), ("/a/b", ("64", "max")), ("/a/b", ("96", "64"))]
)
def test_the_least_limit_of_a_group_and_those_above_counts(tmp_path: Path, group: str, limits: tuple[str, str]) -> None:
    write(tmp_path / "proc/self/cgroup", f"0::{group}\n")
    for name, limit in zip(("a", "a/b"), limits, strict=True):
        text = limit if limit == "max" else str(int(limit) * MIB)
        write(tmp_path / "sys/fs/cgroup" / name / "memory.max", f"{text}\n")
    assert memory_limit_bytes(tmp_path) == 64 * MIB


def test_in_a_namespace_the_limit_is_that_of_the_root_group(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", f"{64 * MIB}\n")
    assert memory_limit_bytes(tmp_path) == 64 * MIB


def test_limits_of_version_1_count_but_its_number_for_no_limit_does_not(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "5:cpu:/x\n4:memory:/elsewhere/on/the/host\n0::/\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{0x7FFFFFFFFFFFF000}\n")
    unlimited = memory_limit_bytes(tmp_path)
    assert unlimited is not None and unlimited > 64 * MIB
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{64 * MIB}\n")
    assert memory_limit_bytes(tmp_path) == 64 * MIB


def test_a_container_is_known_by_the_traces_of_its_engine(tmp_path: Path) -> None:
    assert not in_container(tmp_path, {})
    assert in_container(tmp_path, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert in_container(tmp_path, {"container": "podman"})
    for name in (".dockerenv", "run/.containerenv"):
        write(tmp_path / name, "")
        assert in_container(tmp_path, {})
        (tmp_path / name).unlink()
