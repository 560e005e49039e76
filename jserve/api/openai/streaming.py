"""What the two streaming endpoints have in common."""

from jserve.api.openai.bodies import GenerationBody, StreamOptions
from jserve.api.settings import ServerSettings
from jserve.errors import RequestError


def add_usage_where_forced(body: GenerationBody, settings: ServerSettings) -> None:
    """Ask for the usage in the body's name, where `--enable-force-include-usage` says so."""
    if body.stream and settings.enable_force_include_usage:
        options = body.stream_options or StreamOptions()
        body.stream_options = options.model_copy(update={"include_usage": True})


def stream_interval(body: GenerationBody, settings: ServerSettings) -> int:
    """Tokens per event: the request may ask for more than the server's, not for fewer."""
    return max(body.stream_interval or 1, settings.stream_interval)


def check_stream_options(body: GenerationBody) -> None:
    """Raise RequestError where stream options come without a stream."""
    if body.stream_options is not None and not body.stream:
        raise RequestError("Stream options can only be defined when `stream=True`.", param="stream_options")


def wants_usage(body: GenerationBody) -> bool:
    """Whether a last chunk with the usage is wanted."""
    return body.stream_options is not None and body.stream_options.include_usage


def wants_usage_always(body: GenerationBody) -> bool:
    """Whether every chunk is to carry the usage so far."""
    return wants_usage(body) and body.stream_options is not None and body.stream_options.continuous_usage_stats
