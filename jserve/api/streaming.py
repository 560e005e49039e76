"""What the two streaming endpoints have in common."""

from jserve.api.schemas import GenerationBody
from jserve.errors import RequestError


def check_stream_options(body: GenerationBody) -> None:
    """Raise RequestError where stream options come without a stream."""
    if body.stream_options is not None and not body.stream:
        raise RequestError("Stream options can only be defined when `stream=True`.", param="stream_options")


def wants_usage(body: GenerationBody) -> bool:
    """Whether a last chunk with the usage is asked for."""
    return body.stream_options is not None and body.stream_options.include_usage


def wants_usage_always(body: GenerationBody) -> bool:
    """Whether every chunk is to carry the usage so far."""
    return wants_usage(body) and body.stream_options is not None and body.stream_options.continuous_usage_stats
