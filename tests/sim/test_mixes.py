"""Fairness of mixes of bulk and small requests, and seeded defects of the scheduler that must be caught."""

from collections.abc import Callable
from typing import Any

import pytest

from goreprox.protocol import stream as stream_module
from goreprox.protocol.fair import FairQueue, Turns
from tests.sim.mixes import Mix, check
from tests.sim.world import Violation

SLOW = 0.5e6
"""4 Mbit/s."""
MIXES = [
    Mix(SLOW, fetchers=20, size=12_000),
    Mix(SLOW, fetchers=20, size=12_000, keep=True),
    Mix(SLOW, fetchers=20, size=12_000, hosts="each"),
    Mix(SLOW, fetchers=20, size=12_000, hosts="two"),
    Mix(SLOW, fetchers=20, size=40_000),
    Mix(5 * SLOW, fetchers=40, size=16_000),
    Mix(SLOW, fetchers=1, size=1000, downloads=20),
    Mix(SLOW, fetchers=1, size=1000, downloads=20, hosts="each"),
]


@pytest.mark.parametrize(
    "mix", [pytest.param(mix, marks=pytest.mark.long) if mix.rate > SLOW else mix for mix in MIXES], ids=str
)
def test_every_client_gets_its_fair_share_of_a_full_path_in_bounded_time(mix: Mix) -> None:
    check(mix)


Patch = Callable[[pytest.MonkeyPatch], None]


def _let_new_flows_go_first_without_a_bound(patch: pytest.MonkeyPatch) -> None:
    _set_credit(patch, float("inf"))


def _let_new_flows_wait_for_the_others(patch: pytest.MonkeyPatch) -> None:
    _set_credit(patch, 0.0)


def _set_credit(patch: pytest.MonkeyPatch, credit: float) -> None:
    original = Turns.turn

    def turn(self: Turns[Any], quantum: int) -> Any:
        self._credit = credit
        return original(self, quantum)

    patch.setattr(Turns, "turn", turn)


def _treat_all_clients_as_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stream_module, "client_key", lambda _: "")


def _let_one_stream_hog_the_path(patch: pytest.MonkeyPatch) -> None:
    original = FairQueue.done
    patch.setattr(FairQueue, "done", lambda self, flow, _, *, more: original(self, flow, 0, more=more))


@pytest.mark.long
@pytest.mark.pure
@pytest.mark.parametrize(
    "defect",
    [
        _let_new_flows_go_first_without_a_bound,
        _let_new_flows_wait_for_the_others,
        _treat_all_clients_as_one,
        _let_one_stream_hog_the_path,
    ],
    ids=lambda defect: defect.__name__.strip("_"),
)
def test_a_defect_is_caught(defect: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    with pytest.raises(Violation):
        check_all()


def check_all() -> None:
    for mix in MIXES:
        check(mix)
