"""Seeded defects that both simulations must catch, of two sessions and of whole clusters."""

from collections.abc import Callable
from typing import Any

import pytest

from goreprox.protocol.events import Data, Open, Resume
from goreprox.protocol.multiplexer import Multiplexer
from goreprox.protocol.session import Session

Patch = Callable[[pytest.MonkeyPatch], None]
"""Puts a defect in, for one test."""


def accept_stale_epochs(patch: pytest.MonkeyPatch) -> None:
    """Use data of an epoch that has ended."""
    original = Session._receive

    def receive(self: Session, path_id: Any, batch: Any, size: int, now: float) -> None:
        if self.path is not None and batch.epoch < self.epochs.number:
            for event in batch.events:
                if isinstance(event, Data):
                    self.multiplexer.receive_data(event)
                elif not isinstance(event, Resume):
                    self._dispatch(event, self.path, now)
        else:
            original(self, path_id, batch, size, now)

    patch.setattr(Session, "_receive", receive)


def do_not_repeat_open(patch: pytest.MonkeyPatch) -> None:
    """Forget, in a new epoch, Opens that were lost."""
    original = Multiplexer.establish

    def establish(self: Multiplexer, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        control = self._outbox.control
        self._outbox.control = type(control)(event for event in control if not isinstance(event, Open))

    patch.setattr(Multiplexer, "establish", establish)
