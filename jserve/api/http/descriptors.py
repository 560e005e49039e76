"""File descriptors: as many as the system lets this process have, and some that clients cannot take away.

Whatever a client opens costs a descriptor. A server that has none left can neither start its engine again nor open
a log, so connections end well before.
"""

import resource

_RESERVE = 64
"""Descriptors that clients cannot have: 25 of a server at rest, 16 for connections that are about to be refused, the
others for starts of its engine and workers."""
_MOST_CONNECTIONS = 1 << 14
"""Each costs about 10 kB even while it does nothing."""
_MOST_DESCRIPTORS = 1 << 17
"""Enough; a table of all that some systems allow would be gigabytes."""


def raise_descriptor_limit() -> None:
    """Let this process, and those that it starts, have as many descriptors as its hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_limit(wanted: int | None) -> int:
    """Connections that may be open at once: `wanted` or a usual number, as far as descriptors allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted or _MOST_CONNECTIONS
    return limit if soft == resource.RLIM_INFINITY else max(1, min(limit, soft - _RESERVE))
