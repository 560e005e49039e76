"""API keys: which there are, and whether a request carries one. Only their digests are kept and compared."""

import hashlib
import hmac
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jserve.errors import ConfigError

logger = logging.getLogger(__name__)

_ID_CHARS = 12


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, or the absence of keys. `digest` is its SHA-256; `id` names it in logs and metrics."""

    digest: bytes
    id: str
    tenant: int = 0
    """A number that tells the engine nothing but whose requests belong together."""

    @property
    def is_anonymous(self) -> bool:
        """Whether this stands for everybody who uses a server without keys."""
        return not self.digest


ANYBODY = ApiKey(b"", "anonymous")


class KeyRing:
    """The keys of a server: those of flags or the environment, and those of a file, which can be read again.

    Raises ConfigError where the file cannot be used.
    """

    def __init__(
        self, keys: Iterable[str] = (), file: Path | None = None, names: Mapping[bytes, str] | None = None
    ) -> None:
        """`names` maps digests of keys to the names that logs and metrics use."""
        self._flag_keys = tuple(keys)
        self._file = file
        self._names = names or {}
        self._tenants: dict[bytes, int] = {}  # of all keys that ever were: a number is never used again
        self._keys = self._read()

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._flag_keys and self._file is None

    def reload(self) -> None:
        """Read the file again; one that cannot be used changes nothing."""
        if self._file is None:
            return
        try:
            self._keys = self._read()
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("%d API keys are in use", len(self._keys))

    def find(self, headers: Mapping[bytes, bytes]) -> ApiKey | None:
        """The key that a request carries, as bearer or in `x-api-key`; None where it is missing or wrong."""
        if self.is_open:
            return ANYBODY
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        offered = [headers.get(b"x-api-key", b"")]
        if scheme.lower() == b"bearer":
            offered.append(bearer.strip())
        digests = [hashlib.sha256(offer).digest() for offer in offered]
        match = None
        for key in self._keys:  # All of them, each in constant time, so that the time reveals nothing.
            for digest in digests:
                if hmac.compare_digest(digest, key.digest):
                    match = key
        return match

    def _read(self) -> tuple[ApiKey, ...]:
        keys = [*self._flag_keys, *(read_key_file(self._file) if self._file is not None else ())]
        digests = dict.fromkeys(hashlib.sha256(key.encode()).digest() for key in keys)
        return tuple(self._key(digest) for digest in digests)

    def _key(self, digest: bytes) -> ApiKey:
        tenant = self._tenants.setdefault(digest, len(self._tenants) + 1)
        return ApiKey(digest, self._names.get(digest) or digest.hex()[:_ID_CHARS], tenant)


def read_key_file(path: Path) -> list[str]:
    """Keys, one per line; empty lines and those that begin with # are skipped. Raises ConfigError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file: {path} cannot be read: {error}") from error
    keys = [line.strip() for line in lines]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file: {path} holds no key; write one per line, or leave the flag out")
    return keys
