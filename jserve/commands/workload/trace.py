"""A recorded workload: one line of JSON a request, without a word of what was said.

The first four fields are those of Mooncake's traces, which load generators replay (https://github.com/kvcache-ai/Mooncake):
`hash_ids` stand for the prompt's blocks of 512 tokens, equal where two prompts begin alike.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from jserve.errors import ConfigError

BLOCK_TOKENS = 512


class RecordedRequest(msgspec.Struct, omit_defaults=True):
    """A request and its answer. Times are in milliseconds, `timestamp` since the beginning of the file."""

    timestamp: float
    input_length: int
    """Tokens of the prompt, as the server counted them."""
    output_length: int
    hash_ids: list[int]
    session_id: str = ""
    """The same for all requests of one key, user or address, within one file."""
    model: str = ""
    endpoint: str = ""
    stream: bool = False
    status: int = 0
    """HTTP's; 0 where no answer came."""
    ttft_ms: float | None = None
    """From the request's last byte to the first token; None where there was none, or the answer came whole."""
    e2e_ms: float | None = None
    """To the end of the answer; None where it had none."""
    max_tokens: int | None = None
    tools: int = 0
    images: int = 0
    estimated: bool = False
    """Whether the lengths are guessed from bytes and events, where the server counted nothing."""


def read_trace(path: Path) -> Iterator[RecordedRequest]:
    """The requests of a file in the order of its lines. Raises ConfigError, saying which line is not one."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield msgspec.json.decode(line, type=RecordedRequest)
                    except msgspec.DecodeError as error:
                        raise ConfigError(f"{path}, line {number}, is not a recorded request: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
