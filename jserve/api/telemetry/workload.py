"""A recorded workload: one line of JSON a request, without a word of what was said.

The first four fields are those of Mooncake's traces, which load generators replay (https://github.com/kvcache-ai/Mooncake):
`hash_ids` stand for the prompt's blocks of 512 tokens, equal where two prompts begin alike.
"""

import hmac
import logging
import secrets
import time
from array import array
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

import msgspec

from jserve.api.call import Call
from jserve.api.json_writer import encode
from jserve.errors import ConfigError

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 512
ID_LIMIT = 1 << 52
"""Ids are below it: every reader of JSON keeps them whole."""


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


class TraceFile:
    """Writes a line a request. A disk that is full costs lines, which are counted and told, and nothing else."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where the file cannot be opened."""
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error}") from error
        self.num_written = 0
        self.num_lost = 0

    def write(self, request: RecordedRequest) -> None:
        """Add a line."""
        try:
            self._file.write(encode(request) + b"\n")
        except OSError as error:
            if not self.num_lost:
                logger.warning("requests are not recorded now, and pass all the same: %s", error)
            self.num_lost += 1
            return
        self.num_written += 1

    def close(self) -> None:
        """Say what became of it."""
        self._file.close()
        lost = f"; {self.num_lost} could not be written" if self.num_lost else ""
        logger.info("%d requests recorded%s", self.num_written, lost)


class ServedWorkload:
    """What `--record-workload` writes: the requests that this server has answered, with its own counts."""

    def __init__(self, path: Path, model_name: str) -> None:
        """Raises ConfigError where the file cannot be opened."""
        self._file = TraceFile(path)
        self._model_name = model_name
        self._salt = secrets.token_bytes(32)
        self._began = time.time()

    def write(self, call: Call, status: int) -> None:
        """A request is over; those that gave the engine nothing to do are no part of a workload."""
        if not call.prompts:
            return
        who = call.client if call.key.is_anonymous else call.key.id
        first = call.first_token if call.is_streamed else 0.0
        self._file.write(
            RecordedRequest(
                timestamp=round(1000 * (call.arrived - self._began), 3),
                input_length=call.num_prompt,
                output_length=call.num_output,
                hash_ids=list(_blocks((token for prompt in call.prompts for token in prompt), self._salt)),
                session_id=hmac.digest(self._salt, who.encode(), sha256).hex()[:16],
                model=self._model_name,
                endpoint=call.path[:200],
                stream=call.is_streamed,
                status=status,
                ttft_ms=round(1000 * (first - call.arrived), 3) if first else None,
                e2e_ms=round(1000 * (time.time() - call.arrived), 3),
                max_tokens=max((life.max_tokens for life in call.lives), default=None),
            )
        )

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()


def chained_ids(blocks: Iterable[bytes], salt: bytes) -> Iterator[int]:
    """An id for each block, which depends on all before it: equal ids mean equal beginnings."""
    digest = b""
    for block in blocks:
        digest = hmac.digest(salt, digest + block, sha256)
        yield int.from_bytes(digest[:8], "big") % ID_LIMIT


def _blocks(tokens: Iterable[int], salt: bytes) -> Iterator[int]:
    """The ids of a prompt's blocks."""
    packed = array("q", tokens)
    return chained_ids(
        (packed[start : start + BLOCK_TOKENS].tobytes() for start in range(0, len(packed), BLOCK_TOKENS)), salt
    )
