"""Text files that a model reads as a whole: to be quantized with, or to be judged by."""

from pathlib import Path

import numpy as np

from jserve.checkpoint.json_file import check_regular
from jserve.errors import ConfigError
from jserve.text.tokenizers.tokenizer import Tokenizer

OWN_TEXT = Path(__file__).with_name("alice.txt")
"""Six chapters of Alice's Adventures in Wonderland (Lewis Carroll, 1865), which belongs to nobody."""
MAX_TEXT_BYTES = 64 << 20
"""More than any number of samples that one would wait for."""


def read_text(path: Path, flag: str) -> str:
    """A text file. Raises ConfigError, naming the flag that named it, where it is none."""
    try:
        check_regular(path)
        with path.open("rb") as stream:
            content = stream.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{flag}: {path} cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_TEXT_BYTES:
        raise ConfigError(f"{flag}: {path} is larger than {MAX_TEXT_BYTES:,} bytes; give a part of it")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag}: {path} is not UTF-8 text: {error}") from None
    if not text.strip():
        raise ConfigError(f"{flag}: {path} holds no text")
    return text


def cut(text: str, tokenizer: Tokenizer, samples: int, length: int) -> np.ndarray:
    """i32[S, length], at most `samples` stretches of the text, spread over it; none overlaps another.

    Raises ConfigError where the text is shorter than one.
    """
    tokens = np.asarray(tokenizer.encode(text, add_special_tokens=True), np.int32)
    there = len(tokens) // length
    if there == 0:
        raise ConfigError(
            f"the calibration text has {len(tokens):,} tokens but a sample takes {length:,}; give a longer text, or "
            "lower --sequence-length"
        )
    stretches = tokens[: there * length].reshape(there, length)
    chosen = np.linspace(0, there - 1, min(samples, there)).round().astype(int)
    chosen_stretches: np.ndarray = stretches[chosen]
    return chosen_stretches
