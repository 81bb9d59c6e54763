"""What the list of processes shows of a command that was given secrets."""

from typing import Final

import pytest

from goreprox.__main__ import shown

SECRET: Final = "AXCSabcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("given", "visible"),
    [
        (["--join", f"goreprox://{SECRET}@h:1", "3000"], ["--join", "…", "3000"]),
        ([f"--join={SECRET}"], ["--join=…"]),
        (["--join", SECRET[:9]], ["--join", "…"]),
        ([f"goreprox://{SECRET}@h"], ["goreprox://…@h"]),
        (["--proxy", f"socks5://user:{SECRET}@h:1"], ["--proxy", "socks5://…@h:1"]),
        ([f"--proxy=b:9887=http://user:p@{SECRET}@h:1"], ["--proxy=b:9887=http://…@h:1"]),
        (
            ["--proxy", "http://h:1", "--listen", "https://443=web"],
            ["--proxy", "http://h:1", "--listen", "https://443=web"],
        ),
        (["--join"], ["--join"]),
        ([], []),
    ],
)
def test_neither_a_join_string_nor_user_and_password_of_a_url_is_shown(given: list[str], visible: list[str]) -> None:
    assert shown(given) == visible
