"""Values that are read from files again when these change."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from goreprox.errors import ConfigError
from goreprox.process.reloaded import Reloaded


class Numbers:
    """A file that should hold a number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reads = 0
        self.fails_with: int | None = None
        self.explains = False
        self.number = Reloaded(lambda: [path], self._read, 0)

    def _read(self, paths: Sequence[Path]) -> int:
        self.reads += 1
        if self.fails_with is not None:
            error = OSError(self.fails_with, os.strerror(self.fails_with))
            if self.explains:
                raise ConfigError("cannot be read") from error
            raise error
        try:
            return int(paths[0].read_text())
        except ValueError as exc:
            raise ConfigError("no number") from exc

    def write(self, text: str) -> None:
        new = self.path.with_suffix(".new")  # within one tick of the clock of files another inode tells them apart
        new.write_text(text)
        new.replace(self.path)


@pytest.fixture
def numbers(tmp_path: Path) -> Numbers:
    made = Numbers(tmp_path / "number")
    made.write("1")
    return made


def test_a_file_is_read_once_and_again_after_each_change(numbers: Numbers) -> None:
    assert numbers.number.value == 0
    assert numbers.number.refresh() and numbers.number.value == 1
    assert not numbers.number.refresh()
    numbers.write("2")
    assert numbers.number.refresh() and numbers.number.value == 2
    assert numbers.reads == 2


def test_a_malformed_file_leaves_the_value_and_is_read_again_once_it_has_changed(numbers: Numbers) -> None:
    numbers.number.refresh()
    numbers.write("two")
    with pytest.raises(ConfigError):
        numbers.number.refresh()
    assert not numbers.number.refresh() and (numbers.number.value, numbers.reads) == (1, 2)
    numbers.write("2")
    assert numbers.number.refresh() and numbers.number.value == 2


@pytest.mark.parametrize("explains", [False, True])
def test_a_file_that_cannot_be_read_at_the_moment_leaves_the_value_and_is_tried_again(
    numbers: Numbers, explains: bool
) -> None:
    numbers.number.refresh()
    numbers.write("2")
    numbers.fails_with, numbers.explains = errno.EMFILE, explains
    for _ in range(2):
        with pytest.raises((OSError, ConfigError)):
            numbers.number.refresh()
    assert (numbers.number.value, numbers.reads) == (1, 3)
    numbers.fails_with = None
    assert numbers.number.refresh() and numbers.number.value == 2


def test_a_file_that_may_not_be_read_is_read_again_once_it_has_changed(numbers: Numbers) -> None:
    numbers.fails_with, numbers.explains = errno.EACCES, True
    with pytest.raises(ConfigError):
        numbers.number.refresh()
    assert not numbers.number.refresh() and numbers.reads == 1


def test_a_change_of_the_mode_alone_is_a_change(numbers: Numbers) -> None:
    numbers.number.refresh()
    numbers.path.chmod(0o400)
    assert numbers.number.refresh()
