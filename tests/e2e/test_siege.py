"""A short siege of a fixed seed; `make soak` and `make fresh` draw others."""

from pathlib import Path

import pytest

from tests.e2e.siege import besiege

SEED = 1
SECONDS = 12.0


@pytest.mark.long
async def test_honest_streams_are_unaffected_by_hostile_strangers_and_key_holders(tmp_path: Path) -> None:
    report = await besiege(tmp_path, SEED, seconds=SECONDS)
    assert not report.violations, f"python -m tests.e2e.siege {SEED}: {report.violations}"
    assert report.faults.total() >= 10 and report.streams > 10 and report.bytes_checked > 1 << 20
