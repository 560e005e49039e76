"""Compiled grammars that are kept: by the memory that they take, however many they are."""

import pytest

from jserve.constrain.compiler import GrammarCompiler, GrammarTokenizer
from jserve.constrain.limits import GROWTH
from tests.text.tokenizers.tokenizer_maker import train_byte_level

MIB = 1 << 20


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    return train_byte_level("gpt-2").to_str()


def make_compiler(tokenizer_json: str, kept_bytes: int) -> GrammarCompiler:
    return GrammarCompiler(lambda: GrammarTokenizer(tokenizer_json, 600), 600, frozenset({0}), kept_bytes=kept_bytes)


def test_large_grammars_are_forgotten_where_small_ones_stay(tokenizer_json: str) -> None:
    compiler = make_compiler(tokenizer_json, 8 * GROWTH * MIB)
    small = [compiler.compile(f'start: "{number}"', 1000) for number in range(20)]
    assert [compiler.compile(f'start: "{number}"', 1000) for number in range(20)] == small
    large = [compiler.compile(f'start: "large {number}"', 3 * MIB) for number in range(4)]
    again = [compiler.compile(f'start: "large {number}"', 3 * MIB) for number in (2, 3)]
    assert again == large[2:]
    assert compiler.compile('start: "large 0"', 3 * MIB) is not large[0]


def test_a_grammar_that_takes_more_than_all_may_is_still_compiled(tokenizer_json: str) -> None:
    compiler = make_compiler(tokenizer_json, MIB)
    one = compiler.compile('start: "a"', 100 * MIB)
    assert compiler.compile('start: "a"', 100 * MIB) is one
    assert not one.result().is_error()
    compiler.compile('start: "b"', 1000)
    assert compiler.compile('start: "a"', 100 * MIB) is not one
