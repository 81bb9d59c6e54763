"""The corpus: a file of inputs for each target, one a line in hexadecimal, with those that once found a defect."""

from pathlib import Path

TARGETS = (
    "wire",
    "session",
    "envelope",
    "switch",
    "names",
    "address",
    "join",
    "config",
    "http",
    "proxyproto",
    "hello",
    "nats",
)
FOLDER = Path(__file__).parent / "corpus"


def load(target: str) -> list[bytes]:
    """Return the inputs kept for a target."""
    return [bytes.fromhex(line) for line in (FOLDER / f"{target}.txt").read_text(encoding="ascii").splitlines()]


def save(target: str, inputs: list[bytes]) -> None:
    """Keep these inputs for a target, the shortest first."""
    lines = sorted({data.hex() for data in inputs if data}, key=lambda line: (len(line), line))
    (FOLDER / f"{target}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
