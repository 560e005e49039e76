"""Tokens to text, a few at a time, as they are generated.

The pieces put together are exactly `tokenizer.decode` of all the tokens, however they were cut, and no piece
ends inside a character: half a character at the end, which a limit has cut, is left out. Each token costs the
same, however long the text: byte-level tokens go through an incremental UTF-8 decoder, sentencepiece tokens
through the three rules of their decoder, and only a decoder of neither kind is run again, over the last few tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from jserve.text.tokenizers.decoder_kind import TokenScheme
from jserve.text.tokenizers.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_LONGEST_HALF = 3
"""Tokens that half a character can be: of four bytes, three."""


class IncrementalDetokenizer:
    """One sequence's decoder.

    `continues` says that the text goes on from a prompt: the first space of a sentencepiece model then stays,
    where `decode` drops it. `visible` are special tokens that are not skipped. `before` are the prompt's tokens: where
    they end inside a character, the text begins with the whole of it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool,
        *,
        continues: bool = False,
        visible: frozenset[int] = frozenset(),
        before: Sequence[int] = (),
    ) -> None:
        self._skipped = tokenizer.special_ids - visible if skip_special_tokens else frozenset()
        self._decoder = _decoder_for(tokenizer, continues)
        self._decoder.begin(before[-_LONGEST_HALF:])

    def push(self, ids: list[int]) -> str:
        """The text that is certain now and was not before."""
        skipped = self._skipped
        if not skipped.isdisjoint(ids):
            ids = [token_id for token_id in ids if token_id not in skipped]
        return self._decoder.push(ids)

    def finish(self) -> str:
        """What was held back, but for half a character, which `decode` would make U+FFFD."""
        return self._decoder.finish()


class _Decoder(Protocol):
    def begin(self, before: Sequence[int]) -> None: ...

    def push(self, ids: list[int]) -> str: ...

    def finish(self) -> str: ...


def _decoder_for(tokenizer: Tokenizer, continues: bool) -> _Decoder:
    kind = tokenizer.decoder_kind
    if kind.scheme is TokenScheme.BYTE_LEVEL:
        return _ByteLevel(tokenizer)
    if kind.scheme is TokenScheme.SENTENCEPIECE:
        return _Sentencepiece(tokenizer, strips_first_space=kind.strips_first_space and not continues)
    return _Window(tokenizer)


class _ByteLevel:
    """Bytes of all tokens in a row, read as UTF-8. Python replaces what is invalid as Rust does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_inside = False
        """Whether the bytes so far end inside a character."""

    def begin(self, before: Sequence[int]) -> None:
        run = b"".join([self._tokenizer.token_bytes(token_id) for token_id in before])
        self._utf8.decode(run[len(run) - _half_character(run) :])
        self._is_inside = bool(self._utf8.getstate()[0])

    def push(self, ids: list[int]) -> str:
        if len(ids) == 1 and not self._is_inside:
            text = self._tokenizer.whole_text(ids[0])
            if text is not None:
                return text
        token_bytes = self._tokenizer.token_bytes
        text = self._utf8.decode(b"".join([token_bytes(token_id) for token_id in ids]))
        self._is_inside = bool(self._utf8.getstate()[0])
        return text

    def finish(self) -> str:
        held = self._utf8.getstate()[0]
        return "" if _half_character(held) else self._utf8.decode(b"", True)


class _Sentencepiece:
    """Text tokens, and runs of byte tokens that are a text only as a whole.

    The library reads a run of byte tokens as UTF-8, or as one U+FFFD for each where any of it is invalid, so
    a run is held back until the token that ends it.
    """

    def __init__(self, tokenizer: Tokenizer, *, strips_first_space: bool) -> None:
        self._tokenizer = tokenizer
        self._strips_space = strips_first_space
        self._run = bytearray()

    def begin(self, before: Sequence[int]) -> None:
        for token_id in before:
            byte = self._tokenizer.decoder_kind.fallback_byte(self._tokenizer.token_string(token_id) or "")
            self._run = bytearray() if byte is None else self._run + bytes([byte])
        self._run = self._run[len(self._run) - _half_character(self._run) :]

    def push(self, ids: list[int]) -> str:
        pieces = []
        for token_id in ids:
            token = self._tokenizer.token_string(token_id)
            if token is None:
                continue
            byte = self._tokenizer.decoder_kind.fallback_byte(token)
            if byte is not None:
                self._run.append(byte)
                continue
            pieces.append(self._end_run())
            pieces.append(self._tokenizer.token_bytes(token_id).decode())
        return self._strip("".join(pieces))

    def finish(self) -> str:
        self._run = self._run[: len(self._run) - _half_character(self._run)]
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        run, self._run = self._run, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return _REPLACEMENT * len(run)

    def _strip(self, text: str) -> str:
        if not text or not self._strips_space:
            return text
        self._strips_space = False
        return text.removeprefix(" ")


def _half_character(run: bytes | bytearray) -> int:
    """How many bytes at the end begin a character and do not end it.

    Python's decoder waits after the first two bytes of a surrogate too, which no third byte makes a character.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    utf8.decode(run)
    held = utf8.getstate()[0]
    return 0 if held[:1] == b"\xed" and held[1:] >= b"\xa0" else len(held)


class _Window:
    """Any other decoder: decode the last tokens with and without the new ones, and take the difference.

    The window starts anew at each piece of text, so it stays a few tokens long. Exact as long as a token's
    text depends on few tokens before it, which is all that can be said of a decoder unknown here. A U+FFFD at the end
    may be half a character, so it waits; but not for ever, since it may be all that comes.
    """

    MAX_HELD = 8
    """Tokens; a character has at most four bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._num_read = 0

    def begin(self, before: Sequence[int]) -> None:
        """What is known of no decoder is not guessed: half a character of the prompt stays with the prompt."""

    def push(self, ids: list[int]) -> str:
        self._ids += ids
        text = self._tokenizer.decode(self._ids, False)
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._num_read < self.MAX_HELD:
            return ""
        return self._advance(text)

    def finish(self) -> str:
        return self._advance(self._tokenizer.decode(self._ids, False).rstrip(_REPLACEMENT))

    def _advance(self, text: str) -> str:
        new = text[len(self._tokenizer.decode(self._ids[: self._num_read], False)) :]
        if new:
            self._ids = self._ids[self._num_read :]
            self._num_read = len(self._ids)
        return new
