"""What the server tells systemd over `$NOTIFY_SOCKET`, as sd_notify(3) and sd_watchdog_enabled(3) have it.

READY=1 once the first request can be answered, STATUS= with how far a start is, STOPPING=1 when it drains, and
WATCHDOG=1 while the event loop turns. It never waits, and a server that systemd has not started says nothing.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping

from jserve.api.context import ServerContext
from jserve.errors import EngineUnavailableError

logger = logging.getLogger(__name__)

_LOOK_S = 0.1
"""How often the state is looked at."""
_FEWEST_PINGS = 2
"""Signs of life in each period of the watchdog."""
_READY = "ready"


class NotifySocket:
    """A datagram socket to systemd, or to nobody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. The socket is kept, so that none is lacking later."""
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        elif address:
            logger.warning(
                "NOTIFY_SOCKET is %r, which is neither a path nor an abstract name; nothing is sent", address
            )
        self.ping_interval_s = _ping_interval(environment) if self._socket else 0.0
        """Seconds between two signs of life; 0 where nobody watches."""
        self._has_failed = False

    def tell(self, *assignments: str) -> bool:
        """Send assignments such as "READY=1" in one message, and say whether it was; the first failure is logged."""
        if self._socket is None:
            return False
        message = "\n".join(assignment.replace("\n", " ") for assignment in assignments)
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._has_failed:
                logger.warning("systemd cannot be told %s over NOTIFY_SOCKET: %s", message.split("\n")[0], error)
            self._has_failed = True
            return False
        return True

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def follow(self, server: ServerContext) -> None:
        """Tell each change of the state, and signs of life, until cancelled. Returns where nobody listens."""
        if self._socket is None:
            return
        is_announced, last_status, pinged_at = False, "", -self.ping_interval_s
        while True:
            status = _describe(server)
            is_ready = status == _READY
            news = ["READY=1"] if is_ready and not is_announced else []
            if status != last_status and self.tell(*news, f"STATUS={status}"):  # else again at the next look
                is_announced, last_status = is_announced or is_ready, status
            if self.ping_interval_s and time.monotonic() - pinged_at >= self.ping_interval_s:
                self.tell("WATCHDOG=1")
                pinged_at = time.monotonic()
            await asyncio.sleep(min(_LOOK_S, self.ping_interval_s or _LOOK_S))


def _describe(server: ServerContext) -> str:
    """One line on what the server does; `_READY` where it takes requests."""
    if server.generator.is_draining:
        return f"stopping: {server.generator.num_open} requests are still open"
    try:
        server.model_when_ready()
    except EngineUnavailableError as error:
        return str(error)
    return _READY


def _ping_interval(environment: Mapping[str, str]) -> float:
    """Seconds between two signs of life; 0 where none are wanted, or where another process is to give them."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    period_us = environment.get("WATCHDOG_USEC", "0")
    return int(period_us) / 1e6 / _FEWEST_PINGS if period_us.isascii() and period_us.isdigit() else 0.0
