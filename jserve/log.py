"""How both processes log to standard error: text for people, or one JSON object per line for collectors.

What belongs to a request travels in a context variable, so that every line written while it is handled
carries its id, whichever module writes it. Bodies and keys are never logged.
"""

import logging
import re
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote

import msgspec

LOG_FORMATS = ("text", "json")

request_fields: ContextVar[Mapping[str, str]] = ContextVar("request_fields")
"""What every line of the running task carries, such as `request_id` and `key_id`."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What ends a line for one reader or another, and what terminals take for commands."""
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""What a record has by itself; the rest was given as `extra`."""
_CHATTY = ("uvicorn", "httptools", "asyncio", "jax", "opentelemetry", "huggingface_hub", "httpx", "httpx2")


def set_up_logging(level: str, format: str) -> None:
    """Log to standard error from `level` on; libraries below warning are heard with "debug" only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter(_TEXT, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    if level != "debug":
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)


def writes_json() -> bool:
    """Whether standard error is for a machine, which tables and bars would confuse."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


class TextFormatter(logging.Formatter):
    """A line for people; the request's id follows where the line does not hold it already.

    What a client sends may stand in it: the line of a request stays one line, and tracebacks are indented.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        request_id = request_fields.get({}).get("request_id")
        if request_id is None:
            return line
        line = _CONTROL.sub(lambda control: quote(control[0]), line)
        return line if request_id in line else f"{line} (request {request_id})"

    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {_CONTROL.sub(lambda control: quote(control[0]), line)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """One object per line: `time` (UTC), `level`, `logger`, `message`, the request's fields, and `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **request_fields.get({}),
            **{name: value for name, value in vars(record).items() if name not in _OWN_FIELDS},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = msgspec.json.encode(line, enc_hook=str).decode()
        return _CONTROL.sub(lambda control: f"\\u{ord(control[0]):04x}", text)  # msgspec escapes those below 0x20.
