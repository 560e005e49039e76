"""Keeps callers out of each other's prefix cache, where a fast first token would reveal what others have sent."""

import secrets
from hashlib import blake2b

from jserve.api.access.keys import ApiKey

CACHE_ISOLATIONS = ("key", "none")


class CacheIsolation:
    """Turns the salt that a client sends into the one that the engine hashes with.

    With "key", it depends on a secret that this server drew at its start, and on the key: no client can
    name the pages of another key, or those of a server without isolation. Callers without a key share.
    """

    def __init__(self, kind: str) -> None:
        self._secret = secrets.token_bytes(32) if kind == "key" else None

    def salt(self, key: ApiKey, client_salt: str) -> str:
        """The engine's salt; "" where everybody may share."""
        if self._secret is None or key.is_anonymous:
            return client_salt
        return blake2b(key.digest + client_salt.encode(), key=self._secret, digest_size=32).hexdigest()
