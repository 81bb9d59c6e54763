"""Errors of cyclopts as one line: the option, its value, what was expected, and what to do."""

from typing import get_args

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    Token,
    UnknownOptionError,
    UnusedCliTokensError,
)


def explain(exc: CycloptsError) -> str:
    """Return the line for the user."""
    match exc:
        case CoercionError(token=Token() as token):
            return f"{_where(exc, token)} {token.value!r}: {_expected(exc)}"
        case MissingArgumentError(argument=argument) if argument is not None:
            what = argument.name if argument.name.startswith("-") else argument.name.upper()
            metavar = argument.parameter.metavar
            value = f" {metavar}" if metavar and what.startswith("-") else ""
            command = " ".join(("goreprox", *(exc.command_chain or ())))
            return f"{command}: {what} is missing; add {what}{value}, see `{command} --help`"
        case RepeatArgumentError(token=Token(keyword=str(option))):
            return f"{option}: given twice; once is enough"
        case UnusedCliTokensError(unused_tokens=[first, *_]):
            return f"unexpected argument {first!r}; {_advice(exc, first)}"
        case UnknownOptionError(token=Token(keyword=keyword, source=source)) if source not in ("cli", ""):
            return f"file {source}: {_bare(keyword or '')} is not an option"
        case _:
            return " ".join(str(exc).split())


def origin(token: Token) -> str:
    """Return where an option was given: `flag --listen`, `variable GOREPROX_LISTEN` or `file goreprox.toml`."""
    match token.source:
        case "env":
            return f"variable {token.keyword}"
        case "cli" | "":
            return "argument" if token.keyword is None else f"flag {token.keyword}"
        case file:
            return f"file {file}"


def _where(exc: CoercionError, token: Token) -> str:
    """Return the option as the user wrote it: a flag, a variable, or a key of the file."""
    if token.source == "env":
        return f"variable {token.keyword}"
    if token.source not in ("cli", ""):
        return f"file {token.source}: {_bare(token.keyword or '')}"
    if token.keyword is not None:
        return token.keyword
    return "argument" if exc.argument is None else exc.argument.name.lstrip("-").upper()


def _bare(keyword: str) -> str:
    """Return the name of a key, which cyclopts shows as `[key]`."""
    return keyword.replace("][", ".").strip("[]")


def _expected(exc: CoercionError) -> str:
    if exc.msg is not None:
        return str(exc.msg)
    if choices := get_args(exc.target_type):
        return f"expected one of {', '.join(map(str, choices))}"
    if exc.token is not None and exc.token.value.startswith("["):
        return "expected one value, not a list"
    return "expected true or false" if exc.target_type is bool else "this is not a valid value"


def _advice(exc: UnusedCliTokensError, argument: str) -> str:
    chain = tuple(exc.command_chain or ())
    given = exc.root_input_tokens or []
    match chain:
        case ("server",) | ("edge",) if argument.partition("=")[0].rpartition(":")[2].isdigit():
            return f"did you mean --listen {argument}?"
        case ("keys" | "token", _) if "--services" in given:
            return "separate services by commas and without blanks, like --services web,ssh"
        case _:
            return f"see `{' '.join(('goreprox', *chain))} --help`"
