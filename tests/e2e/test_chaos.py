"""Every fault to every process and link of a real cluster, in the order of a seed; `make fresh` draws others."""

from pathlib import Path

import pytest

from tests.e2e.chaos import plan, rampage

SEED = 1
PACE_S = 0.6


@pytest.mark.long
@pytest.mark.parametrize("nats", [False, True], ids=["brokers", "nats"])
async def test_no_byte_is_lost_and_no_ending_is_invented_whatever_fails(tmp_path: Path, *, nats: bool) -> None:
    report = await rampage(tmp_path, SEED, pace_s=PACE_S, nats=nats)
    assert not report.violations, f"python -m tests.e2e.chaos {SEED}{' --nats' if nats else ''}: {report.violations}"
    assert report.faults.total() == len(plan(SEED))
    assert report.streams - report.excused > 30 and report.bytes_checked > 1 << 24
