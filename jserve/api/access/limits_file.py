"""The file of `--limits`: what each API key may use.

    default:                        # what holds for every key, unless its own entry says otherwise
      requests_per_minute: 60
      tokens_per_minute: 100_000    # prompt tokens and generated tokens together
      tokens_per_day: 5_000_000     # the same, filled evenly over a day; a restart fills it
      concurrent_requests: 8
      highest_priority: 0           # the smallest `priority` that a request may ask for (lower is earlier)
    keys:
      alice:                        # the name that logs and metrics use for this key
        sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
        tokens_per_minute: 2_000_000
        concurrent_requests: null   # no limit, whatever the default is
        highest_priority: -10       # may be served before others; null: by any priority

A key is named by the SHA-256 of its characters (`printf %s "$KEY" | sha256sum`), so that this file holds no
secret. It lets nobody in: keys come from `--api-key`, `--api-key-file` or the environment, and an entry
for a key that is not among them has no effect. Without keys, the defaults hold for all clients together, and
anybody may ask for any priority. A limit that is left out, everywhere, is none; `highest_priority` is then 0.

What counts: a request is a POST that came in with a valid key, whatever its answer; it is concurrent until
its answer is complete, as many times as it has prompts and choices (`n` of each prompt). Prompt tokens
are taken when the request is handed to the engine, generated ones as they come, so a long answer may overdraw; the
next request then waits until the minute has paid for it. All rates are token buckets that hold one period's worth
and are filled evenly. SIGHUP reads the file again: what keys have used lately counts against the new rates.
"""

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import NoReturn

import yaml

from jserve.api.access.limits import Limit, Limits
from jserve.errors import ConfigError

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)
_NULL, _INT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:int"


def read_limits(path: Path) -> Limits:
    """Read and check the file. Raises ConfigError naming the line and the field."""
    try:
        root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--limits: {path} cannot be read: {error}") from error
    return _Reader(path).limits(root)


class _Reader:
    """Walks the file's nodes, which still know their lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def limits(self, root: yaml.Node | None) -> Limits:
        if root is None:
            raise ConfigError(f"--limits: {self._path} is empty; it holds `default:`, `keys:`, or both")
        sections = dict(self._items(root, "the file", known=("default", "keys")))
        default = Limit()
        if "default" in sections:
            default = self._limit(sections["default"], "default", Limit())
        by_digest: dict[bytes, Limit] = {}
        names: dict[bytes, str] = {}
        for name, entry in self._items(sections["keys"], "keys") if "keys" in sections else ():
            if not _NAME.fullmatch(name):
                self._fail(entry, f"{name!r} is no name: use up to 64 letters, digits and . _ @ -")
            digest = self._digest(entry, f"keys.{name}")
            if digest in names:
                self._fail(entry, f"keys.{name} has the sha256 of keys.{names[digest]}")
            by_digest[digest], names[digest] = self._limit(entry, f"keys.{name}", default), name
        return Limits(default, by_digest, names)

    def _digest(self, entry: yaml.Node, where: str) -> bytes:
        node = dict(self._items(entry, where)).get("sha256")
        if node is None:
            self._fail(entry, f"{where} has no sha256 to tell which key it is for")
        if not _SHA256.fullmatch(str(node.value)):
            self._fail(node, f"{where}.sha256 must be the 64 hexadecimal digits of the key's SHA-256")
        return bytes.fromhex(node.value)

    def _limit(self, entry: yaml.Node, where: str, default: Limit) -> Limit:
        names = [field.name for field in fields(Limit)]
        known = (*names, "sha256") if where != "default" else tuple(names)
        changes = {
            name: self._priority(node, f"{where}.{name}")
            if name == "highest_priority"
            else self._count(node, f"{where}.{name}")
            for name, node in self._items(entry, where, known)
            if name in names
        }
        return replace(default, **changes)

    def _count(self, node: yaml.Node, where: str) -> int | None:
        if node.tag == _NULL:
            return None
        value = _whole_number(node)
        if value is None or value < 1:
            self._fail(node, f"{where} is {_shown(node)} but must be a whole number above 0, or null for no limit")
        return value

    def _priority(self, node: yaml.Node, where: str) -> int | None:
        if node.tag == _NULL:
            return None
        value = _whole_number(node)
        if value is None:
            self._fail(node, f"{where} is {_shown(node)} but must be a whole number, or null for any priority")
        return value

    def _items(self, node: yaml.Node, where: str, known: tuple[str, ...] = ()) -> Iterator[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, f"{where} must hold `name: value` lines")
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            if known and name not in known:
                self._fail(key, f"{where} has no field {name!r}; its fields are {', '.join(known)}")
            if name in seen:
                self._fail(key, f"{where} has {name!r} twice")
            seen.add(name)
            yield name, value

    def _fail(self, node: yaml.Node, message: str) -> NoReturn:
        raise ConfigError(f"--limits: {self._path}, line {node.start_mark.line + 1}: {message}")


def _whole_number(node: yaml.Node) -> int | None:
    if isinstance(node, yaml.ScalarNode) and node.tag == _INT:
        return int(yaml.constructor.SafeConstructor().construct_yaml_int(node))
    return None


def _shown(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or a mapping"
