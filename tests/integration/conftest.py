"""What integration tests share."""

from collections.abc import AsyncIterator

import pytest

from tests.support.fabric import Fabric
from tests.support.tunnel import Tunnel


@pytest.fixture
async def fabric() -> AsyncIterator[Fabric]:
    async with Fabric() as fabric:
        yield fabric


@pytest.fixture
async def tunnel() -> AsyncIterator[Tunnel]:
    """Yield a tunnel that has no provider yet."""
    async with Tunnel() as tunnel:
        yield tunnel
