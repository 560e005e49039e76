"""The file of `--api-key-file`: one key a line, as it is, or only its digest with what belongs to it.

    sk-7c1f...                                                      # a key as it is
    sha256:2c26b46b... name=alice expires=2027-02-28T20:00:00Z tokens_per_day=1000000 models=small,large

`jserve key` writes lines of the second kind (see `commands/key.py`), so that the file holds no secret. Fields: `name`
(of logs, metrics, files and stored responses), `created`, `expires`, `revoked`, the limits of `limits.py`, and
`models`. Empty lines and those that begin with # are kept and mean nothing.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jserve.api.access.limits import Limit
from jserve.errors import ConfigError

NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)
LIMITS = tuple(field.name for field in fields(Limit))
_KEPT = re.compile(r"sha256:([0-9a-f]{64})(?:\s|$)")
_TIMES = ("created", "expires", "revoked")
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key: its SHA-256 and what belongs to it. Times are in UTC."""

    digest: bytes
    name: str = ""
    created: datetime | None = None
    expires: datetime | None = None
    revoked: datetime | None = None
    limits: tuple[tuple[str, int], ...] = ()
    """Fields of `Limit` that are set here; others are those of the --limits file."""
    models: tuple[str, ...] = ()
    """The names that it may use; empty for all."""

    @property
    def is_revoked(self) -> bool:
        """Whether it opens nothing any more."""
        return self.revoked is not None

    def is_valid(self, now: datetime) -> bool:
        """Whether it lets its holder in."""
        return not self.is_revoked and (self.expires is None or self.expires > now)

    def line(self) -> str:
        """The entry as it stands in the file."""
        words = [f"sha256:{self.digest.hex()}", f"name={self.name}"]
        words += [f"{name}={moment.strftime(_TIME_FORMAT)}" for name in _TIMES if (moment := getattr(self, name))]
        words += [f"{name}={value}" for name, value in self.limits]
        words += [f"models={','.join(self.models)}"] if self.models else []
        return " ".join(words)


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def entry_of_line(line: str) -> KeyEntry | None:
    """The key of a line, None for an empty line or a comment. Raises ValueError saying what is wrong."""
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    match = _KEPT.match(line)
    if match is None:
        return KeyEntry(digest_of(line))
    entry = KeyEntry(bytes.fromhex(match[1]))
    limits: dict[str, int] = {}
    for word in line.split()[1:]:
        name, equals, value = word.partition("=")
        if not equals or not value:
            raise ValueError(f"{word!r} is not written like name=value")
        if name == "name":
            if not NAME.fullmatch(value):
                raise ValueError(f"{value!r} is no name: use up to 64 letters, digits and . _ @ -")
            entry = replace(entry, name=value)
        elif name in _TIMES:
            times: dict[str, Any] = {name: datetime.strptime(value, _TIME_FORMAT).replace(tzinfo=UTC)}
            entry = replace(entry, **times)
        elif name == "models":
            entry = replace(entry, models=tuple(value.split(",")))
        elif name in LIMITS:
            limits[name] = _limit(name, value)
        else:
            raise ValueError(f"there is no field {name!r}; the fields are {', '.join(_known())}")
    return replace(entry, limits=tuple(limits.items()))


def _limit(name: str, value: str) -> int:
    number = int(value)
    if number < 1 and name != "highest_priority":
        raise ValueError(f"{name} is {value} but must be above 0")
    return number


def _known() -> Iterator[str]:
    yield from ("name", *_TIMES, "models", *LIMITS)


def read_key_file(path: Path) -> list[KeyEntry]:
    """The keys of a file, revoked ones too. Raises ConfigError."""
    entries: list[KeyEntry] = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file: {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            entry = entry_of_line(line)
        except ValueError as error:
            raise ConfigError(f"--api-key-file: {path}, line {number}: {error}") from error
        if entry is not None:
            entries.append(entry)
    if not entries:
        raise ConfigError(f"--api-key-file: {path} holds no key; write one per line, or leave the flag out")
    return entries
