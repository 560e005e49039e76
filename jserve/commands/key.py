"""`jserve key`: makes, shows, revokes and renews the keys of an `--api-key-file`, which holds their digests alone.

A server that runs with the file follows within a second.
"""

import argparse
import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jserve.api.access.key_file import NAME, KeyEntry, digest_of, entry_of_line
from jserve.commands.parser import Formatter, Parser
from jserve.commands.sizes import parse_duration
from jserve.errors import ConfigError

_KEY_BYTES = 32
_FLAGS = {
    "--requests-per-minute": "requests a minute",
    "--tokens-per-minute": "prompt and generated tokens a minute",
    "--tokens-per-day": "prompt and generated tokens a day",
    "--concurrent-requests": "sequences at once",
}


def run(argv: Sequence[str]) -> None:
    """Run `jserve key COMMAND`. Raises ConfigError."""
    options = _parser().parse_args(argv)
    options.command(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jserve key", description=__doc__, formatter_class=Formatter, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    new = _command(commands, "new", _new, "make a key, and print it this once")
    _add_name(new)
    for flag, what in _FLAGS.items():
        new.add_argument(flag, type=_count, metavar="N", help=f"{what} (default: no limit, or that of --limits)")
    new.add_argument("--expires", type=_length, metavar="TIME", help="90d, 12h or 4w from now (default: never)")
    new.add_argument("--models", type=_models, default=(), metavar="A,B", help="names that it may use (default: all)")
    _command(commands, "list", _list, "show all keys, without what would let anybody in")
    _add_name(_command(commands, "revoke", _revoke, "let nobody in with the keys of this name any more"))
    rotate = _command(commands, "rotate", _rotate, "make a new key in the place of an old one, with its limits")
    _add_name(rotate)
    rotate.add_argument(
        "--grace", type=_length, default=timedelta(0), metavar="TIME", help="how long the old key still opens, such "
        "as 24h (default: not at all)",
    )  # fmt: skip
    return parser


def _command(commands: "argparse._SubParsersAction[Parser]", name: str, command: object, what: str) -> Parser:
    parser = commands.add_parser(name, help=what, description=what, formatter_class=Formatter, allow_abbrev=False)
    parser.add_argument("--api-key-file", type=Path, required=True, metavar="FILE", help="the file that holds the keys")
    parser.set_defaults(command=command)
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", type=_name, metavar="NAME", help="whose key it is, for logs, metrics and files")


def _new(options: argparse.Namespace) -> None:
    now = _now()
    names = (flag.removeprefix("--").replace("-", "_") for flag in _FLAGS)
    limits: dict[str, int | None] = {name: getattr(options, name) for name in names}
    key = _made_key()
    entry = KeyEntry(
        digest_of(key),
        options.name,
        created=now,
        expires=now + options.expires if options.expires is not None else None,
        limits=tuple((name, value) for name, value in limits.items() if value is not None),
        models=options.models,
    )
    with _edited(options.api_key_file, create=True) as lines:
        if any(each.is_valid(now) for each in _of_name(lines, options.name)):
            raise ConfigError(f"{options.name} has a key already; `jserve key rotate` makes another in its place")
        lines.append(entry.line())
    print(key)


def _list(options: argparse.Namespace) -> None:
    now = _now()
    for line in _lines_of(options.api_key_file):
        entry = entry_of_line(line)
        if entry is None:
            continue
        state = "valid" if entry.is_valid(now) else "revoked" if entry.is_revoked else "expired"
        print(f"{state:<8} {entry.line() if entry.name else f'sha256:{entry.digest.hex()} (kept as it is)'}")


def _revoke(options: argparse.Namespace) -> None:
    now = _now()
    with _edited(options.api_key_file) as lines:
        _require_valid(lines, options.name, now)
        _replace(lines, options.name, lambda entry: entry if entry.is_revoked else replace(entry, revoked=now))


def _rotate(options: argparse.Namespace) -> None:
    now = _now()
    until = now + options.grace
    key = _made_key()
    with _edited(options.api_key_file) as lines:
        newest = _require_valid(lines, options.name, now)

        def end(entry: KeyEntry) -> KeyEntry:
            if not entry.is_valid(now) or (entry.expires is not None and entry.expires < until):
                return entry
            return replace(entry, expires=until)

        _replace(lines, options.name, end)
        life = None if newest.expires is None or newest.created is None else newest.expires - newest.created
        lines.append(
            replace(newest, digest=digest_of(key), created=now, expires=None if life is None else now + life).line()
        )
    print(key)


def _require_valid(lines: list[str], name: str, now: datetime) -> KeyEntry:
    """The newest key of a name that opens. Raises ConfigError where none does."""
    valid = [entry for entry in _of_name(lines, name) if entry.is_valid(now)]
    if not valid:
        raise ConfigError(f"{name} has no valid key in this file; see `jserve key list`")
    return valid[-1]


def _of_name(lines: list[str], name: str) -> list[KeyEntry]:
    return [entry for line in lines if (entry := entry_of_line(line)) is not None and entry.name == name]


def _replace(lines: list[str], name: str, changed: object) -> None:
    assert callable(changed)
    for number, line in enumerate(lines):
        entry = entry_of_line(line)
        if entry is not None and entry.name == name:
            lines[number] = changed(entry).line()


@contextlib.contextmanager
def _edited(path: Path, *, create: bool = False) -> Iterator[list[str]]:
    """The lines of the file, which are written back, whole or not at all, where the block ends well.

    One command at a time. A new file is its owner's alone.
    """
    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        is_new = create and not path.exists()
        lines = [] if is_new else _lines_of(path)
        yield lines
        written = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                if not is_new:
                    status = path.stat()
                    os.fchmod(file.fileno(), status.st_mode & 0o777)
                    os.fchown(file.fileno(), status.st_uid, status.st_gid)
                file.write("".join(f"{line}\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
            written.replace(path)
            os.fsync(folder)
        finally:
            written.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"--api-key-file: {path} cannot be written: {error}") from error
    finally:
        os.close(folder)


def _lines_of(path: Path) -> list[str]:
    """All lines, each of which can be read. Raises ConfigError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file: {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            entry_of_line(line)
        except ValueError as error:
            raise ConfigError(f"--api-key-file: {path}, line {number}: {error}") from error
    return lines


def _made_key() -> str:
    return f"sk-{secrets.token_urlsafe(_KEY_BYTES)}"


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: use up to 64 letters, digits and . _ @ -")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _length(text: str) -> timedelta:
    seconds = parse_duration(text)
    if seconds < 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; write it like 90d, 12h or 4w, or leave it out for ever"
        )
    return timedelta(seconds=seconds)


def _models(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if any(not name or re.search(r"\s", name) for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names with commas between")
    return names
