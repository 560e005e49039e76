"""Watches an engine that has work and makes no steps: says so in the log, and ends one that does not come back."""

import asyncio
import logging
import time

from jserve.api.supervisor.client import EngineClient

logger = logging.getLogger(__name__)

_INTERVAL_S = 0.1
"""How often it looks; a look is three comparisons."""


async def watch_decode(client: EngineClient) -> None:
    """Look until cancelled. One line when a stall begins and one when it ends, however it ends.

    An engine that has been silent for `--hang-timeout` is killed; the supervisor then starts another.
    """
    stalled_at: float | None = None
    killed_pid: int | None = None
    while True:
        await asyncio.sleep(_INTERVAL_S)
        if client.is_stalled and stalled_at is None:
            stalled_at = time.monotonic() - client.seconds_silent
            logger.error(
                "decode has stalled: %d sequences are open and the engine (pid %s) has made no step for %.1f s; "
                "/health/decode answers 503",
                client.num_open, client.pid, client.seconds_silent,
            )  # fmt: skip
        elif stalled_at is not None and not client.is_stalled:
            logger.warning("decode is no longer stalled, after %.1f s", time.monotonic() - stalled_at)
            stalled_at = None
        if client.is_hung and client.pid != killed_pid:
            killed_pid = client.pid
            logger.error(
                "the engine (pid %s) has not answered for %.1f s (--hang-timeout); it is killed, and another started",
                client.pid, client.seconds_silent,
            )  # fmt: skip
            client.kill_hung()
