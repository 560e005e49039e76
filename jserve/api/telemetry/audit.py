"""The audit log: one JSON line for each request, which says who did what and when, and never a word of any text.

The file is rotated by its size. A disk that takes no more is told once, and costs no request its answer.
"""

import contextlib
import logging
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from jserve.api.call import Call
from jserve.api.json_writer import encode
from jserve.errors import StartupError

logger = logging.getLogger(__name__)

_OUTCOMES = {401: "unauthorized", 429: "refused", 499: "abandoned", 503: "refused"}


class AuditLog:
    """`path` and its predecessors: `path.1` is the newest of `num_files`. Raises StartupError."""

    def __init__(self, path: Path, max_bytes: int, num_files: int, model_name: str) -> None:
        self._model_name = model_name
        try:
            self._handler = _Handler(path, maxBytes=max_bytes, backupCount=num_files)
        except OSError as error:
            raise StartupError(f"--audit-log: {path} cannot be written: {error}") from error
        self._handler.setFormatter(logging.Formatter("%(message)s"))

    def write(self, call: Call, status: int) -> None:
        """A request is over."""
        line = encode(self._describe(call, status)).decode()
        self._handler.handle(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Nothing more comes."""
        with contextlib.suppress(OSError):  # A full disk, which has been told.
            self._handler.close()

    def _describe(self, call: Call, status: int) -> dict[str, Any]:
        now = time.time()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(call.arrived))
        return {
            "time": f"{moment}.{int(call.arrived % 1 * 1000):03d}Z",
            "request_id": call.request_id,
            "key_id": call.key.id if call.is_let_in else None,
            "client": call.client,
            "method": call.method,
            "path": call.path[:200],
            "status": status,
            "outcome": _outcome(call, status),
            "model": self._model_name if call.lives else None,
            "prompt_tokens": call.num_prompt,
            "cached_tokens": call.num_cached,
            "output_tokens": call.num_output,
            "seconds_to_first_token": round(call.first_token - call.arrived, 4) if call.first_token else None,
            "seconds": round(now - call.arrived, 4),
        }


def _outcome(call: Call, status: int) -> str:
    """How the request ended: the reasons of its choices where there are any."""
    reasons = dict.fromkeys(life.finish_reason for life in call.lives if life.finish_reason)
    if reasons:
        return ",".join(reasons)
    return _OUTCOMES.get(status, "ok" if status < 400 else "refused" if status < 500 else "error")


class _Handler(RotatingFileHandler):
    """Says once that the disk takes no more, and again when it has taken a line since."""

    _has_failed = False

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, encoding="utf-8", **options)

    def emit(self, record: logging.LogRecord) -> None:
        was_failing, self._has_failed = self._has_failed, False
        super().emit(record)
        if self._has_failed and not was_failing:
            logger.error("the audit log %s cannot be written; lines are lost until it can", self.baseFilename)

    def handleError(self, record: logging.LogRecord) -> None:
        self._has_failed = True
