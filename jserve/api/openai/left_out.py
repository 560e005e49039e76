"""What a request holds and this server does not have: left out of the prompt, and named in the log."""

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)

_MAX_SHOWN = 10
_MAX_CHARS = 60


def log_left_out(what: str, kinds: Sequence[object]) -> None:
    """Write one line where `kinds`, the types of what is left out, are any. `what` is their name in the plural."""
    if not kinds:
        return
    shown = ", ".join(f"{kind!r:.{_MAX_CHARS}}" for kind in list(dict.fromkeys(map(str, kinds)))[:_MAX_SHOWN])
    logger.info("a request's %s of types that this server does not have are left out: %s", what, shown)
