"""Every fault to every process and link of a cluster of real processes, in the order of two seeds."""

import asyncio
from pathlib import Path

from tests.e2e.chaos import plan, rampage

SEEDS = (1, 2)
PACE_S = 0.6


async def test_no_byte_is_lost_and_no_ending_is_invented_whatever_fails(tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in SEEDS]
    for folder in folders:
        folder.mkdir()
    reports = await asyncio.gather(
        *(rampage(folder, seed, pace_s=PACE_S) for folder, seed in zip(folders, SEEDS, strict=True))
    )
    for seed, report in zip(SEEDS, reports, strict=True):
        assert not report.violations, f"python -m tests.e2e.chaos {seed}: {report.violations}"
        assert report.faults.total() == len(plan(seed))
        assert report.streams - report.excused > 30 and report.bytes_checked > 1 << 24
