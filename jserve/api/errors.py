"""The one place where an exception becomes an HTTP answer.

Handlers raise; nothing else in `api/` writes a status code for a failure. The body follows the path's dialect:
OpenAI's `{"error": {"message", "type", "param", "code"}}`, Anthropic's under /v1/messages, Ollama's under /api.
"""

import enum
import logging
import re
import reprlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from jserve.api.json_writer import encode
from jserve.errors import (
    ContextLengthError,
    EngineFailedError,
    EngineUnavailableError,
    FieldPath,
    JserveError,
    OverloadedError,
    RateLimitError,
    RequestError,
    StorageError,
    UnknownModelError,
)

logger = logging.getLogger(__name__)

_MAX_REPORTED = 10
_MAX_DETAILED = 10_000
"""Errors of a body that are looked at one by one; more would take a noticeable time."""
_MAX_INPUT_CHARS = 200
_BRANCH = re.compile(r".*[\[\](){}].*|constrained-str|str|int|float|bool|list|dict|none|nullable|NamedToolChoice")
"""What pydantic adds to the path of a field to say which member of a union it speaks of."""
_MAX_MESSAGE_CHARS = 4_000
_PATH = re.compile(r"(?<![\w:/.])(?:/[\w.@+-]+){2,}")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class UnauthorizedError(Exception):
    """The key is missing or wrong (HTTP 401)."""


class MediaTypeError(Exception):
    """The body is not JSON (HTTP 400)."""


class ClientGoneError(JserveError):
    """Nobody reads the answer any more."""


EXPECTED_ERRORS = (JserveError, ValidationError, MediaTypeError, UnauthorizedError, HTTPException)
"""What `error_handler.py` answers; anything else is a defect, which `Edge` answers and logs."""


class Dialect(enum.Enum):
    """Whose words a client understands."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"

    @classmethod
    def of(cls, path: str) -> "Dialect":
        """The dialect of a route."""
        if path.startswith("/v1/messages"):
            return cls.ANTHROPIC
        return cls.OLLAMA if path == "/" or path.startswith("/api/") else cls.OPENAI


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """A failure as the client sees it, in a body of its own or in a stream."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    """A word for programs, where there is one. Never the status: typed clients read a text or null."""
    retry_after_s: int | None = None

    def body(self, dialect: Dialect = Dialect.OPENAI) -> bytes:
        """The JSON body."""
        if dialect is Dialect.OLLAMA:
            return encode({"error": self.message})
        if dialect is Dialect.ANTHROPIC:
            kind = _ANTHROPIC_TYPES.get(self.status, "api_error")
            return encode({"type": "error", "error": {"type": kind, "message": self.message}})
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return encode({"error": error})

    def response(self, dialect: Dialect = Dialect.OPENAI) -> Response:
        """The HTTP response."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        elif self.status == 429:
            headers["x-should-retry"] = "false"  # What the official clients obey.
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(self.body(dialect), self.status, headers, media_type="application/json")


def invalid(*message: str, param: str, value: Any) -> RequestError:
    """A request error that shows the value, as clients of vLLM expect it."""
    return RequestError(*message, " (parameter=", FieldPath(param), f", value={_shorten(value)})", param=param)


def answer_for(error: Exception) -> ErrorAnswer:
    """What the client is told about `error`. Unexpected errors are logged with their traceback."""
    match error:
        case UnknownModelError():
            return ErrorAnswer(404, str(error)[:_MAX_MESSAGE_CHARS], "NotFoundError", "model", "model_not_found")
        case RequestError():
            code = "context_length_exceeded" if isinstance(error, ContextLengthError) else None
            return ErrorAnswer(400, _without_paths(str(error)), "BadRequestError", error.param, code)
        case MediaTypeError():
            return ErrorAnswer(400, str(error), "Bad Request")
        case ValidationError():
            return _answer_for_validation(error)
        case UnauthorizedError():
            return ErrorAnswer(401, str(error), "invalid_request_error", code="invalid_api_key")
        case RateLimitError():
            retry = error.retry_after_s
            return ErrorAnswer(429, str(error), "rate_limit_error", code="rate_limit_exceeded", retry_after_s=retry)
        case OverloadedError():
            return ErrorAnswer(503, str(error), "Service Unavailable", retry_after_s=error.retry_after_s)
        case EngineUnavailableError():
            return ErrorAnswer(503, _without_paths(str(error)), "ServiceUnavailableError", retry_after_s=5)
        case EngineFailedError():
            return ErrorAnswer(500, _without_paths(str(error)), "InternalServerError")
        case StorageError():
            return ErrorAnswer(507, _without_paths(str(error)), "InsufficientStorage")
        case ClientGoneError():
            return ErrorAnswer(499, str(error), "ClientClosedRequest")
        case HTTPException():
            phrase = HTTPStatus(error.status_code).phrase
            return ErrorAnswer(error.status_code, error.detail or phrase, phrase)
    logger.error("unexpected error in a request", exc_info=error)
    message = f"internal error ({type(error).__name__}); the server's log has the details"
    return ErrorAnswer(500, message, "InternalServerError")


def _answer_for_validation(error: ValidationError) -> ErrorAnswer:
    if error.error_count() > _MAX_DETAILED:
        message = f"{error.error_count()} validation errors; the first are left out, since there are too many"
        return ErrorAnswer(400, message, "Bad Request", param="body")
    details = error.errors(include_url=False, include_context=False)
    shown = [
        {
            "type": detail["type"],
            "loc": _path_of(detail["loc"]),
            "msg": detail["msg"],
            "input": _summary(detail["input"]),
        }
        for detail in details[:_MAX_REPORTED]
    ]
    plural = "" if len(details) == 1 else "s"
    lines = "".join(f"\n  {detail}" for detail in shown)
    more = f"\n  ...and {len(details) - len(shown)} more errors" if len(details) > len(shown) else ""
    message = f"{len(details)} validation error{plural}:{lines}{more}"
    return ErrorAnswer(400, message, "Bad Request", param=shown[0]["loc"])


def _path_of(location: tuple[int | str, ...]) -> str:
    """A field as the client wrote it, with dots."""
    return ".".join(["body", *(str(part) for part in location if not _BRANCH.fullmatch(str(part)))])


def _summary(value: Any) -> str:
    """A wrong input as text. What holds others is only counted: the message is about one field, not its neighbours."""
    return f"<{type(value).__name__} of {len(value)} items>" if isinstance(value, dict | list) else _shorten(value)


def _shorten(value: Any) -> str:
    """A value as text. What is not shown is not turned into text either: it may be megabytes."""
    if isinstance(value, str | bytes | bytearray):
        value = value[: _MAX_INPUT_CHARS + 1]
    text = value if isinstance(value, str) else _repr(value)
    return text if len(text) <= _MAX_INPUT_CHARS else text[:_MAX_INPUT_CHARS] + "…"


def _repr(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = _MAX_INPUT_CHARS + 1
    return short.repr(value)


def _without_paths(message: str) -> str:
    """Hide where files and objects lie on the server."""
    return _ADDRESS.sub("", _PATH.sub("<path>", message[:_MAX_MESSAGE_CHARS]))
