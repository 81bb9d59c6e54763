"""Runs the corpus, and a second of fuzzing of the largest targets; `make fresh` and `make fuzz` go on."""

import subprocess
import sys

import pytest

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS

FUZZED = ("http", "session")


def test_every_target_is_known_to_the_corpus() -> None:
    assert tuple(TARGETS) == corpus.TARGETS


@pytest.mark.parametrize("target", corpus.TARGETS)
def test_the_corpus_finds_nothing(target: str) -> None:
    for data in corpus.load(target):
        try:
            TARGETS[target](data)
        except Exception as exc:
            raise AssertionError(f"python -m tests.fuzz {target} --hex {data.hex()}") from exc


@pytest.mark.long
@pytest.mark.pure
def test_a_second_of_fuzzing_finds_nothing() -> None:
    pytest.importorskip("atheris", reason="its wheels are for Linux on x86-64")
    command = [sys.executable, "-m", "tests.fuzz", *FUZZED, "--seconds", str(len(FUZZED))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("inputs reached") == len(FUZZED)
