"""API keys: which there are, and whether a request carries one. Only their digests are kept and compared."""

import hashlib
import hmac
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jserve.api.access.key_file import KeyEntry, digest_of, read_key_file
from jserve.errors import ConfigError

logger = logging.getLogger(__name__)

_ID_CHARS = 12
_LOOK_S = 1.0
"""How often the file is looked at for a change."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, or the absence of keys. `digest` is its SHA-256; `id` names it in logs and metrics."""

    digest: bytes
    id: str
    tenant: int = 0
    """A number that tells the engine nothing but whose requests belong together."""
    owner: str = ""
    """Whose files, stored responses and limits they are. It outlives a rotation of the key."""
    own_limits: tuple[tuple[str, int], ...] = ()
    """Fields of `Limit` that its entry in the key file sets."""
    models: frozenset[str] = frozenset()
    """The names that it may use; empty for all."""
    expires: float = math.inf
    """Unix time."""

    @property
    def is_anonymous(self) -> bool:
        """Whether this stands for everybody who uses a server without keys."""
        return not self.digest


ANYBODY = ApiKey(b"", "anonymous")


class KeyRing:
    """The keys of a server: those of flags or the environment, and those of a file, which is followed as it changes.

    Raises ConfigError where the file cannot be used.
    """

    def __init__(
        self,
        keys: Iterable[str] = (),
        file: Path | None = None,
        names: Mapping[bytes, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`names` maps digests of keys to the names that logs and metrics use."""
        self._flag_keys = tuple(keys)
        self._file = file
        self._names = names or {}
        self._tenants: dict[str, int] = {}  # of all owners that ever were: a number is never used again
        self._clock = clock
        self._looked_at = clock()
        self._stamp = self._stamp_of_file()
        self._keys = self._read()

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._flag_keys and self._file is None

    def rename(self, names: Mapping[bytes, str]) -> None:
        """Use other names, from the next `reload` on."""
        self._names = names

    def reload(self) -> None:
        """Read the file again; one that cannot be used changes nothing."""
        self._stamp = self._stamp_of_file()
        try:
            self._keys = self._read()
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            if not self.is_open:
                logger.info("%d API keys are in use", len(self._keys))

    def find(self, headers: Mapping[bytes, bytes]) -> ApiKey | None:
        """The key that a request carries, as bearer or in `x-api-key`; None where it is missing, wrong or expired."""
        if self.is_open:
            return ANYBODY
        self._follow_file()
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
        return match if match is not None and match.expires > time.time() else None

    def of_owner(self, owner: str) -> ApiKey | None:
        """A valid key of an owner, for work that goes on without a client; None where there is none any more."""
        if self.is_open:
            return ANYBODY if owner == ANYBODY.owner else None
        self._follow_file()
        now = time.time()
        return next((key for key in self._keys if key.owner == owner and key.expires > now), None)

    def _follow_file(self) -> None:
        """Read the file again where it has changed, so that a key that is revoked is soon refused."""
        now = self._clock()
        if self._file is None or now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        if self._stamp_of_file() != self._stamp:
            self.reload()

    def _stamp_of_file(self) -> tuple[int, int, int] | None:
        if self._file is None:
            return None
        try:
            status = os.stat(self._file)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[ApiKey, ...]:
        entries = [KeyEntry(digest_of(key)) for key in self._flag_keys]
        if self._file is not None:
            entries += [entry for entry in read_key_file(self._file) if not entry.is_revoked]
        return tuple(self._key(entry) for entry in {entry.digest: entry for entry in entries}.values())

    def _key(self, entry: KeyEntry) -> ApiKey:
        digest = entry.digest
        owner = f"name:{entry.name}" if entry.name else digest.hex()
        return ApiKey(
            digest,
            entry.name or self._names.get(digest) or digest.hex()[:_ID_CHARS],
            self._tenants.setdefault(owner, len(self._tenants) + 1),
            owner,
            entry.limits,
            frozenset(entry.models),
            math.inf if entry.expires is None else entry.expires.timestamp(),
        )
