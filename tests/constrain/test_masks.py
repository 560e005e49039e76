"""The masks of a step, where the tokenizer has more tokens than the model has rows."""

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from jserve.constrain.bits import as_mask, num_words
from jserve.constrain.compiler import GrammarCompiler, GrammarTokenizer
from jserve.constrain.masks import MaskMaker, MaskRow
from jserve.constrain.row import RowConstraint
from jserve.protocol import SamplingParams

EOS = 256


def tokenizer_of(size: int) -> GrammarTokenizer:
    """The 256 bytes, an end, and special tokens up to `size`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(f"<{number}>", special=True) for number in range(EOS, size)])
    return GrammarTokenizer(backend.to_str(), size)


@pytest.mark.parametrize("rows", [288, 287, 264, 300])
@pytest.mark.parametrize("count", [1, 3])
def test_grammar_of_a_tokenizer_with_other_tokens_than_the_model_has_rows(rows: int, count: int) -> None:
    """vllm#33509: 288 rows end with a whole word of bits, 289 tokens need one more."""
    compiler = GrammarCompiler(lambda: tokenizer_of(289), rows, frozenset({EOS}))
    masks = MaskMaker(rows, lambda: compiler.vocab_size)
    params = SamplingParams(grammar="start: /[ab]{2}/")
    constraints = [
        RowConstraint(params, rows, frozenset({EOS}), compiler.compile(params.grammar).result().deep_copy())
        for _ in range(count)
    ]
    letter = int(np.flatnonzero(as_mask(fill(masks, constraints, ())[0], rows))[0])
    for new_tokens, allowed in (((letter,), {letter, letter + 1}), ((letter,), {EOS})):
        for row in fill(masks, constraints, new_tokens):
            assert row.shape == (num_words(rows),)
            assert set(np.flatnonzero(as_mask(row, rows)).tolist()) == allowed


def fill(masks: MaskMaker, constraints: list[RowConstraint], new_tokens: tuple[int, ...]) -> list[np.ndarray]:
    rows = [MaskRow(number, constraint, new_tokens) for number, constraint in enumerate(constraints)]
    signed, failed = masks.fill(rows, len(rows) + 1)
    assert not failed
    assert (signed[-1] == -1).all(), "a row without a constraint may choose anything"
    return list(signed[:-1].view(np.uint32))
