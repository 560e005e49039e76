"""Names of this server that a request may carry in `Host`, against DNS rebinding.

A page of any web site can make its own name point to 127.0.0.1, and is then, for the browser, of one origin with a
server that listens there. All that gives it away is the name, so where no key is needed a request over loopback must
carry one that no site can have.
"""

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import Scope

_PRIVATE_ENDINGS = (".localhost", ".local", ".internal")
"""Domains that nobody can register; Ollama lets them pass too."""


class HostNames:
    """`allowed` are the names of `--allowed-hosts`: "*" is all, a leading "*." all below a domain."""

    def __init__(self, allowed: Iterable[str], *, needs_key: bool) -> None:
        self._allowed = frozenset(name.lower().rstrip(".") for name in allowed)
        self._needs_key = needs_key
        self._own = socket.gethostname().lower()

    def refused_in(self, scope: Scope) -> str | None:
        """A name in the head of the request that is none of this server's, None where all are well."""
        if "*" in self._allowed or (not self._allowed and (self._needs_key or not _is_over_loopback(scope))):
            return None
        hosts = (value.decode("latin-1") for name, value in scope["headers"] if name == b"host")
        return next((host for host in hosts if not self._takes(host)), None)

    def _takes(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self._allowed or f"*.{name.partition('.')[2]}" in self._allowed:
            return True
        has_no_site = "." not in name or name.endswith(_PRIVATE_ENDINGS) or name == self._own
        return has_no_site or _address_of(name) is not None


def _is_over_loopback(scope: Scope) -> bool:
    """Whether the request came to an address that only this machine reaches."""
    server = scope.get("server")
    address = _address_of(server[0]) if server else None
    return address is not None and address.is_loopback


def _address_of(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
