"""Tells a page what happens, as server-sent events; one that is slow gets the newest state only.

First there is `hello`: the samples of the last hour by process, and whether the page may change something. Then
`happened` is one event of the feed, `processes` are all processes as they are, and `samples` one more of each.
"""

import asyncio
import contextlib
import json
from typing import Final

from aiohttp import web

from goreprox.monitor.collector import Collector
from goreprox.monitor.processes import Known
from goreprox.monitor.web import FIELDS, TIMEOUT_S
from goreprox.process.feed import KEPT

QUIET_S: Final = 10.0
"""After so long without anything to tell, a comment is sent, so that a page that is gone is noticed."""
FIELDS_LEFT_OUT: Final = ("connections",)
"""Of the status: pages list streams on their own."""


async def live(request: web.Request, collector: Collector, *, allow_actions: bool) -> web.StreamResponse:
    """Tell a page what happens, until it leaves."""
    response = web.StreamResponse(headers={**FIELDS, "Content-Type": "text/event-stream"})
    await response.prepare(request)
    with collector.watched(), contextlib.suppress(ConnectionError, TimeoutError):
        await _tell(response, "hello", {"allow_actions": allow_actions, "history": collector.history.all()})
        looks, events, sampled = -1, 0, 0.0
        while True:
            try:
                async with asyncio.timeout(QUIET_S):
                    await collector.change(looks, events)
            except TimeoutError:
                await _write(response, b":\n\n")
            feed = collector.feed
            events = max(events, feed.forgotten)
            for event in feed.after(events, KEPT):
                await _tell(response, "happened", event.fields)
                events += 1
            if collector.looks > looks:
                looks = collector.looks
                known = list(map(_encoded, collector.known))
                await _tell(response, "processes", {"at": collector.at, "processes": known})
                newest = max((sample.at for sample in collector.samples.values()), default=0.0)
                if sampled and newest > sampled:
                    await _tell(response, "samples", collector.samples)
                sampled = max(newest, 1.0)
    return response


def _encoded(known: Known) -> dict[str, object]:
    document = known.document
    shown = document and {name: value for name, value in document.items() if name not in FIELDS_LEFT_OUT}
    return {"who": known.who, "report": known.report.encoded(), "status": shown}


async def _tell(response: web.StreamResponse, event: str, data: object) -> None:
    await _write(response, f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Send it.

    Raises:
        TimeoutError: the page does not take it.
        ConnectionError: the page has left.
    """
    async with asyncio.timeout(TIMEOUT_S):
        await response.write(data)
