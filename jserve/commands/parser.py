"""How every command reads its arguments: help with defaults, and mistakes told in one line."""

import argparse
from typing import NoReturn

from jserve.commands.foreign_flags import hint_for


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults; None reads as the automatic choice that it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None and action.option_strings and "default" not in (action.help or ""):
            return f"{action.help} (default: auto)"
        if action.default == argparse.SUPPRESS or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is a `--help` away."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(f"{prefix}-"):
            flag = message.removeprefix(prefix).split()[0]
            hint = hint_for(flag, self._option_string_actions)
            message = f"unknown flag {flag}" + (f": {hint}" if hint else "")
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")
