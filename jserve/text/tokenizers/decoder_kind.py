"""How a tokenizer turns tokens into text, as far as decoding step by step must know it."""

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tokenizers import Tokenizer as Backend

from jserve.text.tokenizers.byte_alphabet import bytes_of_token

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"


class TokenScheme(Enum):
    """What tokens are: bytes; or text and, as `<0x0A>`, single bytes; or something else."""

    BYTE_LEVEL = "byte-level"
    SENTENCEPIECE = "sentencepiece"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class DecoderKind:
    """The scheme, and whether decoding drops one space at the very beginning."""

    scheme: TokenScheme
    strips_first_space: bool = False

    def token_bytes(self, token: str) -> bytes:
        """The bytes of one token, as if it stood in the middle of a text."""
        if self.scheme is TokenScheme.BYTE_LEVEL:
            return bytes_of_token(token)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace(_SPACE_MARK, " ").encode()

    def fallback_byte(self, token: str) -> int | None:
        """The byte that a sentencepiece byte token stands for, or None for any other token."""
        match = _BYTE_TOKEN.fullmatch(token) if self.scheme is TokenScheme.SENTENCEPIECE else None
        return int(match[1], 16) if match else None


def decoder_kind(backend: Backend) -> DecoderKind:
    """Recognise the decoder by its serialized form."""
    if backend.decoder is None:
        return DecoderKind(TokenScheme.OTHER)
    steps = _flatten(json.loads(backend.decoder.__getstate__()))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return DecoderKind(TokenScheme.BYTE_LEVEL)
    replace = {"type": "Replace", "pattern": {"String": _SPACE_MARK}, "content": " "}
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and steps[0] == replace:
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        if len(steps) == 3 or steps[3:] == [strip]:
            return DecoderKind(TokenScheme.SENTENCEPIECE, strips_first_space=len(steps) == 4)
    return DecoderKind(TokenScheme.OTHER)


def _flatten(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [inner for part in step["decoders"] for inner in _flatten(part)]
