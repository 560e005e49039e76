"""The tokenizer of a model, whichever files it came from.

A thin wrapper of the `tokenizers` library: the same tokens as `transformers.AutoTokenizer`, without importing
transformers where a `tokenizer.json` or a GGUF file says enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer as Backend

from jserve.text.tokenizers.decoder_kind import DecoderKind, TokenScheme, decoder_kind

_GIL_HELD_CHARACTERS = 1024
"""`encode` of the library holds the GIL and `encode_batch_fast` does not, but costs 7 us more per call."""
_PIECE_CHARACTERS = 1 << 16
"""Length of a piece, where the tokens of a text are counted piece by piece."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """Two texts as one, with the model's special tokens between and around them."""

    token_ids: list[int]
    second_text: int
    """Place of the first token of the second type; 0 where there is one type alone."""
    second_end: int
    """Place behind the last token of the second text."""
    second_length: int
    """Tokens of the second text."""

    def shortened(self, length: int) -> Self:
        """With tokens left out at the second text's end, as many as are too many. May still be longer."""
        cut = min(max(0, len(self.token_ids) - length), self.second_length)
        end = self.second_end - cut
        kept = self.token_ids[:end] + self.token_ids[self.second_end :]
        return replace(self, token_ids=kept, second_end=end, second_length=self.second_length - cut)


class Tokenizer:
    """Immutable after construction; any thread may call any method."""

    def __init__(
        self,
        backend: Backend,
        *,
        source: Path,
        special_tokens: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        """`special_tokens` maps roles ("bos_token", ...) to tokens; `chat_templates` names to templates."""
        self.backend = backend
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self.chat_templates = dict(chat_templates or {})
        self._token_bytes: dict[int, bytes] = {}
        self._whole_texts: dict[int, str | None] = {}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids. Special tokens written out in `text` become single tokens, as in transformers."""
        if len(text) > _GIL_HELD_CHARACTERS:
            return self.encode_batch([text], add_special_tokens)[0]
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        """Token ids of each text, on all cores and without the GIL."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def encode_pair(self, first: str, second: str) -> TokenPair:
        """Two texts as the tokenizer's own rule joins them, as for a cross-encoder."""
        encoding = self.backend.encode(first, second)
        types, mine = encoding.type_ids, [place for place, text in enumerate(encoding.sequence_ids) if text == 1]
        second_text = types.index(1) if 1 in types else 0
        return TokenPair(encoding.ids, second_text, mine[-1] + 1 if mine else len(types), len(mine))

    def beginning(self, text: str, tokens: int) -> str:
        """As much of a text as has more than so many tokens, or all of it: counted without tokenizing the rest."""
        count = 0
        for end in range(_PIECE_CHARACTERS, len(text), _PIECE_CHARACTERS):
            count += len(self.encode(text[end - _PIECE_CHARACTERS : end], add_special_tokens=False))
            if count > tokens:
                return text[:end]
        return text

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of the whole sequence. Ids that the vocabulary does not have give nothing."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_string(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it, None for an id that it does not have."""
        return self.backend.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds inside a text; several tokens may share one character's bytes."""
        token_bytes = self._token_bytes.get(token_id)
        if token_bytes is None:
            token = self.backend.id_to_token(token_id)
            token_bytes = b"" if token is None else self.decoder_kind.token_bytes(token)
            self._token_bytes[token_id] = token_bytes
        return token_bytes

    def whole_text(self, token_id: int) -> str | None:
        """The text of a token whose bytes are whole characters; None for any other."""
        try:
            return self._whole_texts[token_id]
        except KeyError:
            pass
        try:
            text = self.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            text = None
        return self._whole_texts.setdefault(token_id, text)

    def token_text(self, token_id: int) -> str:
        """The bytes of one token as text, U+FFFD standing for what is not whole characters."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def is_special(self, token_id: int) -> bool:
        return token_id in self.special_ids

    @cached_property
    def num_ids(self) -> int:
        """The highest token id plus one, added tokens included. The model's embedding may have more rows, or fewer."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def decoder_kind(self) -> DecoderKind:
        return decoder_kind(self.backend)

    @property
    def keeps_text(self) -> bool:
        """Whether every character is in some token, so that the longest token bounds what a number of tokens holds.
        WordPiece drops white space, and makes any unknown word one token.
        """
        return self.decoder_kind.scheme is not TokenScheme.OTHER

    @cached_property
    def special_ends(self) -> tuple[int, int]:
        """How many special tokens `encode` puts before a text, and how many after it."""
        mask = self.backend.encode("a", add_special_tokens=True).special_tokens_mask
        if 0 not in mask:
            return len(mask), 0
        return mask.index(0), mask[::-1].index(0)

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens.get("eos_token")

    @cached_property
    def bos_token_id(self) -> int | None:
        return None if self.bos_token is None else self.token_id(self.bos_token)

    @cached_property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own end token. All that end an answer stand in the model's configuration."""
        return None if self.eos_token is None else self.token_id(self.eos_token)

    @property
    def chat_template(self) -> str | None:
        """The default template, or None where the model has none."""
        return self.chat_templates.get("default")
