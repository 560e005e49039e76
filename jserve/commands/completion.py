"""`jserve completion SHELL`: what lets a shell complete commands, flags and their values.

The script is written out of the commands' own parsers, so that it knows every flag, and calls nothing when it is used.
"""

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from jserve.commands.names import COMMANDS
from jserve.commands.parser import Parser, parser_of

SHELLS = ("bash", "zsh", "fish")
_HOW = """how to use it:
  bash   jserve completion bash > ~/.local/share/bash-completion/completions/jserve
  zsh    jserve completion zsh > ~/.zfunc/_jserve, with `fpath+=~/.zfunc; autoload -Uz compinit; compinit` in ~/.zshrc
  fish   jserve completion fish > ~/.config/fish/completions/jserve.fish"""


_FIRST_WORDS = {"bench": "serve"}
"""What follows the name of a command that has further ones, each with flags of its own."""


_SERVERS = ("compile", "perplexity", "run", "run-batch")
"""Commands that take the server's flags too."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag, its one line of help and the values that it has to choose from."""

    name: str
    help: str
    choices: tuple[str, ...]


def run(argv: Sequence[str]) -> None:
    """Print the script for a shell."""
    parser = Parser(
        prog="jserve completion",
        description="Print a script that lets a shell complete commands and flags.",
        epilog=_HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(list(argv)).shell
    flags = dict(_commands())
    print(_fish(flags) if shell == "fish" else _bash(flags, shell))


def _commands() -> Iterator[tuple[str, tuple[Flag, ...]]]:
    """Each command with its flags."""
    from jserve.commands.options import build_parser

    server = tuple(_flags(build_parser()))
    yield "serve", server
    for name, module in sorted(COMMANDS.items()):
        word = _FIRST_WORDS.get(name, "")
        own = tuple(_flags(parser_of(import_module(module).run, [word or "MODEL", "FILE"])))
        own = (Flag(word, "", ()), *own) if word else own
        yield name, own + server if name in _SERVERS else own


def _flags(parser: argparse.ArgumentParser) -> Iterator[Flag]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield Flag(name, "", ())
                yield from _flags(inner)
        elif action.help != argparse.SUPPRESS:
            text = (action.help or "").split(";")[0].split(". ")[0].replace("%%", "%")
            for name in action.option_strings:
                yield Flag(name, text.split(" (default")[0], tuple(map(str, action.choices or ())))


def _bash(commands: Mapping[str, Sequence[Flag]], shell: str) -> str:
    """zsh reads the same through its own emulation of bash's completion."""
    values, flags = [], []
    for command, known in commands.items():
        for flag in known:
            if flag.choices:
                values.append(f"    {command}:{flag.name}) words={shlex.quote(' '.join(flag.choices))} ;;")
        names = " ".join(dict.fromkeys(flag.name for flag in known))
        flags.append(f"      {command}) words={shlex.quote(names)} ;;")
    begin = "#compdef jserve\nautoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    lines = [
        "_jserve_completion() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command=serve words="" word',
        '  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        f'    case "$word" in {"|".join(commands)}) command="$word"; break ;; esac',
        "  done",
        '  case "$command:$before" in',
        *values,
        "  esac",
        '  if [[ -z "$words" && ( "$current" == -* || "$COMP_CWORD" -eq 1 || "$before" == "$command" ) ]]; then',
        '    case "$command" in',
        *flags,
        "    esac",
        f'    [[ "$COMP_CWORD" -ne 1 || "$current" == -* ]] || words={shlex.quote(" ".join(commands))}',
        "  fi",
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
        '  [[ ${#COMPREPLY[@]} -gt 0 || "$current" == -* ]] || COMPREPLY=($(compgen -f -- "$current"))',
        "}",
        "complete -o filenames -F _jserve_completion jserve",
    ]
    return begin + "\n".join(lines)


def _fish(commands: Mapping[str, Sequence[Flag]]) -> str:
    names = " ".join(commands)
    lines = [f"complete -c jserve -n '__fish_is_first_token' -a '{names}'"]
    for command, known in commands.items():
        when = f"__fish_seen_subcommand_from {command}"
        if command == "serve":
            when = f"not __fish_seen_subcommand_from {names}; or {when}"
        for flag in known:
            if not flag.name.startswith("-"):
                lines.append(f"complete -c jserve -n '{when}' -a {flag.name}")
                continue
            kind = f"-l {flag.name[2:]}" if flag.name.startswith("--") else f"-o {flag.name[1:]}"
            choices = f" -x -a {shlex.quote(' '.join(flag.choices))}" if flag.choices else ""
            lines.append(f"complete -c jserve -n '{when}' {kind} -d {shlex.quote(flag.help)}{choices}")
    return "\n".join(lines)
