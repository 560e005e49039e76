"""Incremental decoding: any cutting gives what `decode` gives for all the tokens but half a character at the end."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from jserve.text.load import load_tokenizer
from jserve.text.tokenizers.decoder_kind import TokenScheme
from jserve.text.tokenizers.detokenizer import IncrementalDetokenizer
from jserve.text.tokenizers.tokenizer import Tokenizer
from tests.text.tokenizers.tokenizer_maker import (
    SAMPLES,
    save_byte_level_gguf,
    save_sentencepiece_gguf,
    train_byte_level,
)
from tests.text.tokenizers.tokenizer_maker import train_sentencepiece as train


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("byte_level") / "m.gguf"
    tokenizer = load_tokenizer(save_byte_level_gguf(path, train_byte_level("llama-bpe"), "llama-bpe"))
    assert tokenizer.decoder_kind.scheme is TokenScheme.BYTE_LEVEL
    return tokenizer


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("sentencepiece")
    tokenizer = load_tokenizer(save_sentencepiece_gguf(folder / "m.gguf", train(folder)))
    assert tokenizer.decoder_kind.scheme is TokenScheme.SENTENCEPIECE
    return tokenizer


@pytest.fixture(scope="module")
def gemma_like(sentencepiece: Tokenizer) -> Tokenizer:
    """Sentencepiece that keeps the first space."""
    backend = Backend.from_str(sentencepiece.backend.to_str())
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return Tokenizer(backend, source=Path("gemma"))


TOKENIZERS = ["byte_level", "sentencepiece", "gemma_like"]


def _pieces(tokenizer: Tokenizer, chunks: list[list[int]], skip: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip)
    return [*(detokenizer.push(chunk) for chunk in chunks), detokenizer.finish()]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=250)
@given(data=st.data(), skip=st.booleans())
def test_random_tokens_in_random_pieces_give_what_decode_gives(
    request: pytest.FixtureRequest, name: str, data: st.DataObject, skip: bool
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    # Ids past the vocabulary stand for padding rows of the embedding. Low ids are special tokens and bytes,
    # so half of the draws come from there: bytes are where characters break.
    ids = st.integers(0, tokenizer.num_ids + 5) | st.integers(0, 262)
    chunks = data.draw(st.lists(st.lists(ids, max_size=6), max_size=12))
    flat = [token for chunk in chunks for token in chunk]
    assert "".join(_pieces(tokenizer, chunks, skip)) == _whole(tokenizer, flat, skip)


def _whole(tokenizer: Tokenizer, ids: list[int], skip: bool) -> str:
    """All tokens decoded at once, without half a character at their end."""
    kept = [token for token in ids if not (skip and token in tokenizer.special_ids)]
    kept = [token for token in kept if tokenizer.token_string(token) is not None]
    if tokenizer.decoder_kind.scheme is TokenScheme.BYTE_LEVEL:
        is_cut = _half(b"".join(tokenizer.token_bytes(token) for token in kept)) > 0
        whole = tokenizer.decode(kept, False)
        return whole[:-1] if is_cut else whole
    run = b""
    for token in reversed(kept):
        byte = tokenizer.decoder_kind.fallback_byte(tokenizer.token_string(token) or "")
        if byte is None:
            break
        run = bytes([byte]) + run
    return tokenizer.decode(kept[: len(kept) - _half(run)], False)


def _half(data: bytes) -> int:
    """Bytes of half a character at the end."""
    for count in range(1, min(4, len(data) + 1)):
        lead = data[-count]
        if lead >= 0xC0:
            needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            possible = any(_is_character(data[-count:] + rest) for rest in _endings(needed - count))
            return count if needed > count and possible else 0
        if lead < 0x80:
            return 0
    return 0


def _endings(count: int) -> list[bytes]:
    """Ends of a character in `count` bytes: enough of them to try whether its beginning can go on."""
    return [bytes([first, *[0x80] * (count - 1)]) for first in (0x80, 0x90, 0xA0, 0xBF)] if count > 0 else []


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150)
@given(
    text=st.text(max_size=30) | st.sampled_from(SAMPLES) | st.text("👍👨‍👩‍👧é你 ", max_size=20),
    data=st.data(),
)
def test_no_piece_of_a_real_text_ends_inside_a_character(
    request: pytest.FixtureRequest, name: str, text: str, data: st.DataObject
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(text, False)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    chunks = [ids[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    pieces = _pieces(tokenizer, chunks, skip=False)
    whole = tokenizer.decode(ids, False)
    assert "".join(pieces) == whole
    if "\ufffd" not in whole:
        assert not any("\ufffd" in piece for piece in pieces)


def _byte_token(tokenizer: Tokenizer, byte: int) -> int:
    """The token that is this byte alone."""
    numbers = range(tokenizer.num_ids)
    return next(number for number in numbers if tokenizer.token_bytes(number) == bytes([byte]))


def test_an_emoji_of_four_byte_tokens_comes_out_whole_and_at_once(byte_level: Tokenizer) -> None:
    ids = [_byte_token(byte_level, byte) for byte in "👍".encode()]
    assert _pieces(byte_level, [[token] for token in ids], skip=False) == ["", "", "", "👍", ""]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("character", ["é", "你", "👍"])
def test_half_a_character_at_the_end_is_left_out(request: pytest.FixtureRequest, name: str, character: str) -> None:
    """imp#1310: an answer that a limit cuts in mid-character ended with U+FFFD."""
    tokenizer: Tokenizer = request.getfixturevalue(name)
    for cut in range(1, len(character.encode())):
        ids = [_byte_token(tokenizer, byte) for byte in f"z{character}".encode()[: 1 + cut]]
        assert "".join(_pieces(tokenizer, [ids], skip=False)) == "z"


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "raw", [b"\xed\xa0", b"\xed\xbf", b"\xf0\x80", b"\xe0\x9f", b"\xf4\x90", b"\xc0", b"\xf5", b"\x80"]
)
def test_bytes_at_the_end_that_no_others_make_a_character_are_shown(
    request: pytest.FixtureRequest, name: str, raw: bytes
) -> None:
    """Overlong forms, surrogates, and what is past the last character: `decode` gives one U+FFFD for each byte."""
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = [_byte_token(tokenizer, byte) for byte in b"z" + raw]
    assert tokenizer.decode(ids, False).endswith("\ufffd" * len(raw))
    for chunks in ([ids], [[token] for token in ids]):
        assert "".join(_pieces(tokenizer, chunks, skip=False)) == tokenizer.decode(ids, False)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("character", ["é", "你", "👍"])
def test_a_character_that_begins_in_the_prompt_is_shown_whole(
    request: pytest.FixtureRequest, name: str, character: str
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = [_byte_token(tokenizer, byte) for byte in f"z{character}".encode()]
    for cut in range(2, len(ids)):
        detokenizer = IncrementalDetokenizer(tokenizer, False, continues=True, before=ids[:cut])
        assert detokenizer.push(ids[cut:]) + detokenizer.finish() == character
    detokenizer = IncrementalDetokenizer(tokenizer, False, continues=True, before=ids)
    assert detokenizer.push(ids[:1]) + detokenizer.finish() == "z"


def test_half_a_character_at_the_end_is_left_out_by_any_other_decoder() -> None:
    backend = Backend(models.WordLevel({"\ufffd": 0, "a": 1}, unk_token="a"))
    backend.decoder = decoders.Sequence([decoders.Fuse()])
    assert _pieces(Tokenizer(backend, source=Path("other")), [[1], [0], [0]], False) == ["a", "", "", ""]


def test_text_that_goes_on_from_a_prompt_keeps_its_first_space(sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode("fox over", False)
    assert sentencepiece.decode(ids, False) == "fox over"
    detokenizer = IncrementalDetokenizer(sentencepiece, True, continues=True)
    assert detokenizer.push(ids) + detokenizer.finish() == " fox over"


def test_special_tokens_are_left_out_only_if_asked(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("hi<|im_end|>\n", False)
    assert "".join(_pieces(byte_level, [ids], skip=True)) == "hi\n"
    assert "".join(_pieces(byte_level, [ids], skip=False)) == "hi<|im_end|>\n"


def test_any_other_decoder_is_run_over_a_window() -> None:
    vocab = {"un": 0, "##believ": 1, "##able": 2, "story": 3, "[UNK]": 4}
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    tokenizer = Tokenizer(backend, source=Path("wordpiece"))
    assert tokenizer.decoder_kind.scheme is TokenScheme.OTHER
    assert _pieces(tokenizer, [[0], [1], [2], [], [3, 0], [2]], False) == [
        *("un", "believ", "able", ""),
        *(" story un", "able", ""),
    ]


def test_replacement_characters_without_end_are_shown_by_any_other_decoder_and_cost_the_same_each() -> None:
    """4,000 tokens of half a character: a window that waited for the other half would decode 8 million tokens."""
    backend = Backend(models.WordLevel({"\ufffd": 0, "a": 1}, unk_token="a"))
    backend.decoder = decoders.Sequence([decoders.Fuse()])
    tokenizer = Tokenizer(backend, source=Path("other"))
    assert tokenizer.decoder_kind.scheme is TokenScheme.OTHER
    num_decoded = 0

    class Counting(Tokenizer):
        def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
            nonlocal num_decoded
            num_decoded += len(ids)
            return super().decode(ids, skip_special_tokens)

    pieces = _pieces(Counting(backend, source=Path("other")), [[0]] * 4000, False)
    assert 4000 - 8 <= "".join(pieces).count("\ufffd") <= 4000
    assert num_decoded < 4000 * 30


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["\x80", "\xf0\x9f", " ", "\n", "\xe4\xbd\xa0"])
def test_32k_tokens_of_the_same_bytes_leave_nothing_behind_in_the_decoder(
    request: pytest.FixtureRequest, name: str, text: str
) -> None:
    """Endless replacement characters, halves of characters, whitespace, characters of three byte tokens."""
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = [_byte_token(tokenizer, byte) for byte in text.encode("latin-1")] * (32_768 // len(text))
    pieces = _pieces_at_the_cost_of_single_tokens(tokenizer, ids, True)
    assert "".join(pieces) == _whole(tokenizer, ids, False)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_token_costs_the_same_however_long_the_text(request: pytest.FixtureRequest, name: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(" ".join(SAMPLES) * 150, False)[:60_000]
    pieces = _pieces_at_the_cost_of_single_tokens(tokenizer, ids, False)
    assert "".join(pieces) == tokenizer.decode(ids, False)


def _pieces_at_the_cost_of_single_tokens(tokenizer: Tokenizer, ids: list[int], skip: bool) -> list[str]:
    """The pieces, for which no more CPU time was needed than for decoding each token by itself a thousand times. To
    decode for each token all that came before would take more than ten thousand times as long.
    """
    began = time.thread_time()
    for token in ids:
        tokenizer.decode([token], skip)
    alone = time.thread_time() - began
    pieces = _pieces(tokenizer, [[token] for token in ids], skip)
    assert time.thread_time() - began - alone < 1000 * alone
    return pieces
