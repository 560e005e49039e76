"""Every error that jserve raises on purpose, in one tree.

A message names the thing, the value, the limit and the way out. `api/` maps the tree to HTTP bodies in
one place; `cli.py` prints it without a traceback and exits 1.
"""

from collections.abc import Callable
from typing import Self


class JserveError(Exception):
    """Root of the tree. `str(error)` is fit for a user's eyes."""


class FieldPath(str):
    """The part of a message that names a field of the request, by its path: `tools[0].function.name`."""

    __slots__ = ()


class RequestError(JserveError):
    """The request is at fault, and only that request pays (HTTP 400).

    The message may come in parts. A field that another API calls otherwise is a part of its own, a FieldPath, so that
    the message can be made with either name. `param` is the path of the offending field, or None.
    """

    def __init__(self, *message: str, param: str | None = None) -> None:
        super().__init__("".join(message))
        self.message = message
        self.param = None if param is None else str(param)  # Writers of JSON take no subclass of str.

    def renamed(self, name_of: Callable[[str], str]) -> Self:
        """The same error, with what `name_of` makes of each path of a field."""
        message = (name_of(part) if isinstance(part, FieldPath) else part for part in self.message)
        return type(self)(*message, param=None if self.param is None else name_of(self.param))


class UnknownModelError(RequestError):
    """The request names a model that this server does not serve (HTTP 404)."""


class ContextLengthError(RequestError):
    """The prompt does not fit the context (HTTP 400, with the code that OpenAI's clients look for)."""


class OverloadedError(JserveError):
    """The queue is full (HTTP 503, with Retry-After)."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimitError(JserveError):
    """A key has used what it may (HTTP 429). `retry_after_s` None: waiting does not help."""

    def __init__(self, message: str, *, retry_after_s: int | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineUnavailableError(JserveError):
    """The engine process is loading, restarting or gone (HTTP 503)."""


class StorageError(JserveError):
    """What should outlive the request could not be written (HTTP 507)."""


class EngineFailedError(JserveError):
    """The engine died while it worked on this request (HTTP 500)."""


class StartupError(JserveError):
    """The server cannot start; the message says why and which flag to change (exit code 1)."""


class ConfigError(StartupError):
    """A flag, a preset or a combination of them is not possible."""


class CheckpointError(StartupError):
    """A model file is missing, damaged, or not supported. The message names the file and the tensor."""


class OutOfMemoryError(StartupError):
    """Weights, temporaries and KV pages do not fit. The message gives the numbers and the flag."""
