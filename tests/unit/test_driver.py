"""Which version of the session two peers speak."""

import pytest

from goreprox import driver
from goreprox.driver import common_version


@pytest.mark.parametrize(
    ("ours", "theirs", "common"),
    [
        ((1, 1), [1, 1], 1),
        ((1, 1), [1, 2], 1),
        ((1, 2), [1, 1], 1),
        ((1, 2), [2, 3], 2),
        ((2, 3), [1, 2], 2),
        ((1, 3), [2, 3], 3),
        ((1, 1), [2, 3], None),
        ((2, 3), [1, 1], None),
        ((1, 1), [0, 0], None),
        ((1, 2), [2, 1], None),
        ((1, 1), [1], None),
        ((1, 1), ["1", "1"], None),
        ((1, 1), None, None),
    ],
)
def test_both_write_the_lower_of_their_newest_versions(
    monkeypatch: pytest.MonkeyPatch, ours: tuple[int, int], theirs: object, common: int | None
) -> None:
    monkeypatch.setattr(driver, "VERSION_LEAST", ours[0])
    monkeypatch.setattr(driver, "VERSION", ours[1])
    assert common_version(theirs) == common
