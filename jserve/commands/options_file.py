"""The file of `--config`: options in YAML, made into arguments of the command line, which wins over them."""

import argparse
from pathlib import Path
from typing import Any

from jserve.commands.foreign_flags import hint_for
from jserve.errors import ConfigError


def arguments_of_file(parser: argparse.ArgumentParser, path: Path, set_by_flag: set[str]) -> list[str]:
    """The file's options as arguments, without those that the command line sets itself: `set_by_flag`."""
    arguments: list[str] = []
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        if action.option_strings and action.dest not in ("help", "version", "config"):
            actions.setdefault(action.dest, action)
    for key, value in _read_yaml(path).items():
        dest = str(key).replace("-", "_")
        if dest not in actions:
            flags = [flag for action in actions.values() for flag in action.option_strings]
            hint = hint_for(f"--{dest.replace('_', '-')}", flags)
            raise ConfigError(f"{path}: unknown option {key!r}" + (f": {hint}" if hint else ""))
        if dest not in set_by_flag and not (dest == "model" and "model_path" in set_by_flag) and value is not None:
            arguments += _as_arguments(actions[dest], value, path)
    return arguments


def _as_arguments(action: argparse.Action, value: Any, path: Path) -> list[str]:
    flag = next(option for option in action.option_strings if option.startswith("--"))
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: {flag[2:]} is {value!r} but must be true or false")
        if isinstance(action, argparse.BooleanOptionalAction):
            return [flag if value else f"--no-{flag[2:]}"]
        return [flag] if value else []
    if isinstance(value, list):
        return [flag, *map(str, value)]
    if isinstance(value, dict):
        raise ConfigError(f"{path}: {flag[2:]} must be a single value, not a mapping")
    return [f"{flag}={value}"]


def _read_yaml(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config: {path} cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {path} must hold `name: value` lines, not a {type(content).__name__}")
    return content
