"""Whatever we pass on, h11 reads in the same bytes, too, and as we do; what it refuses, we refuse."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.http.heads import BAD_IN_HEAD, parse_request
from goreprox.http.requests import Rejected
from tests.support.malformed import NEXT, ONE_READING
from tests.support.readings import (
    REQUESTS,
    RESPONSES,
    mutant,
    requests_by_h11,
    requests_by_us,
    response_by_h11,
    response_by_us,
    same,
)

LENIENT = re.compile(rb"(?<!\r)\n|(?:\A|\n\r\n)\r\n")
"""What h11 refuses or waits behind, and we accept of targets: LF alone, and blank lines before a head."""


@pytest.mark.parametrize("name", ONE_READING)
def test_h11_reads_what_we_accept_as_we_do(name: str) -> None:
    raw = ONE_READING[name][0] + NEXT
    ours, theirs = requests_by_us(raw), requests_by_h11(raw)
    assert len(ours) == len(theirs) == 2
    assert all(map(same, ours, theirs))


@given(st.builds(mutant, st.randoms(), st.just(REQUESTS)), st.booleans())
def test_no_target_gets_a_request_that_h11_reads_otherwise(raw: bytes, follows: bool) -> None:
    raw += NEXT * follows
    ours, theirs = requests_by_us(raw), requests_by_h11(raw)
    assert len(ours) <= len(theirs)
    assert all(map(same, ours, theirs))


@given(st.builds(mutant, st.randoms(), st.just(RESPONSES)), st.sampled_from([b"GET", b"HEAD"]))
def test_no_client_gets_a_response_that_h11_reads_otherwise(raw: bytes, method: bytes) -> None:
    ours, theirs = response_by_us(raw, method), response_by_h11(raw, method)
    if ours is not None and ours != theirs:
        assert theirs is None
        assert LENIENT.search(raw) or b"\r" in ours[1]  # so may the LF behind a CR that is the last byte of a chunk


@pytest.mark.parametrize("value", range(256))
def test_no_byte_gets_past_the_parser_that_no_head_may_have(value: int) -> None:
    """Whole heads are not searched for it: the parser refuses it wherever it is."""
    head = b"GET /a HTTP/1.1\r\nHost: a\r\nX-A: b c\r\n\r\n"
    for at in range(len(head) - 4):
        for after in (at, at + 1):
            changed = head[:at] + bytes([value]) + head[after:]
            if changed.startswith(b"\r\n"):
                continue  # blank lines first are skipped by the reader
            with contextlib.suppress(Rejected):
                parse_request(changed[: changed.index(b"\r\n\r\n") + 4])
                assert not BAD_IN_HEAD.search(changed), changed
