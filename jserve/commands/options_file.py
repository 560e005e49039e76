"""The file of `--config`: options in YAML, made into arguments of the command line, which wins over them."""

import argparse
from pathlib import Path
from typing import Any

from jserve.commands.foreign_flags import hint_for
from jserve.errors import ConfigError


def arguments_of_file(parser: argparse.ArgumentParser, path: Path, set_by_flag: set[str]) -> list[str]:
    """The file's options as arguments, without those that the command line sets itself: `set_by_flag`."""
    arguments: list[str] = []
    actions = _by_name(parser)
    for key, value in _read_yaml(path).items():
        name = str(key).replace("_", "-")
        action = actions.get(name)
        if action is None:
            hint = hint_for(f"--{name}", [f"--{known}" for known in actions])
            raise ConfigError(f"{path}: unknown option {key!r}" + (f": {hint}" if hint else ""))
        is_set = action.dest in set_by_flag or (name == "model" and "model_path" in set_by_flag)
        if not is_set and value is not None:
            arguments += _as_arguments(action, value, path)
    return arguments


def _by_name(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Options by the name of their flag. What switches another one off has no name of its own."""
    return {
        flag.removeprefix("--"): action
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--") and not flag.startswith("--no-") and action.dest not in ("help", "version", "config")
    }


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
