"""Asks running processes for their status documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from goreprox.control import client
from goreprox.status.document import FORMAT, Document


@dataclass(frozen=True, slots=True)
class Responses:
    """The documents of the processes of a directory."""

    documents: list[Document]
    problems: list[str]
    """One line for each process that did not respond: which one, and why."""


def ask_all(directories: Sequence[Path], *, role: str | None = None, name: str | None = None) -> Responses:
    """Ask all processes of `directories`, or those of a role or name, at once.

    Raises:
        ControlError: there is none, or none that this user may ask.
    """
    replies = client.ask_all(directories, "status", roles=client.ROLES if role is None else (role,), name=name)
    documents = [reply.result for reply in replies if is_document(reply.result)]
    problems = [
        reply.problem or f"{reply.who} runs another version of goreprox; use that version to ask it"
        for reply in replies
        if not is_document(reply.result)
    ]
    return Responses(documents, problems)


def is_document(value: object) -> TypeGuard[Document]:
    """Whether a reply is a document of the form that is known here."""
    return isinstance(value, dict) and value.get("format") == FORMAT
