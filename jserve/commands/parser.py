"""How every command reads its arguments: help with defaults, and mistakes told in one line."""

import argparse
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

from jserve.commands.foreign_flags import hint_for


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults; None reads as the automatic choice that it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None and action.option_strings and "default" not in (action.help or ""):
            return f"{action.help} (default: auto)"
        if action.default == argparse.SUPPRESS or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class ParserBuilt(Exception):
    """What `parser_of` ends a command with, once it has built its parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


_is_wanted: ContextVar[bool] = ContextVar("parser is wanted", default=False)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is a `--help` away."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which the other ways of parsing go through."""
        if _is_wanted.get():
            raise ParserBuilt(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(f"{prefix}-"):
            flag = message.removeprefix(prefix).split()[0]
            hint = hint_for(flag, self._option_string_actions)
            message = f"unknown flag {flag}" + (f": {hint}" if hint else "")
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser_of(run: Callable[[Sequence[str]], None], words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser that a command builds for a line that begins with `words`, before it does anything.

    Raises TypeError where it builds none.
    """
    token = _is_wanted.set(True)
    try:
        run(words)
    except ParserBuilt as built:
        return built.parser
    finally:
        _is_wanted.reset(token)
    raise TypeError(f"{run.__module__} reads its arguments without a Parser")
