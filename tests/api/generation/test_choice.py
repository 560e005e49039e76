"""A choice gives the same text, tokens and reasons however the engine cuts its deltas."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from jserve.api.generation.choice import Choice
from jserve.api.generation.transcript import Transcript
from jserve.protocol import SamplingParams, TokenDelta, TokenLogprobs
from jserve.text.load import load_tokenizer
from jserve.text.output.reasoning import THINK
from jserve.text.tokenizers.tokenizer import Tokenizer
from jserve.text.tools.parser import MessageParser


@pytest.fixture(scope="module")
def tiny(model_dir: object) -> Tokenizer:
    return load_tokenizer(str(model_dir))


def _run(tokenizer: Tokenizer, sampling: SamplingParams, ids: list[int], cuts: list[int]) -> Transcript:
    """Feed `ids`, the last of which ends the sequence by its length, cut at `cuts`."""
    choice = Choice(0, sampling, tokenizer)
    updates = []
    for start, end in pairwise([0, *cuts, len(ids)]):
        if choice.finish_reason is not None:
            break
        piece = ids[start:end]
        logprobs = [TokenLogprobs(-1.0, 1, [token], [-1.0]) for token in piece]
        reason = "length" if end == len(ids) else None
        updates.append(choice.accept(TokenDelta("r", piece, finish_reason=reason, logprobs=logprobs)))
    assert choice.num_tokens == sum(len(update.token_ids) for update in updates)
    transcript = Transcript(0)
    for update in updates:
        transcript.add(update)
    return transcript


def _meaning(done: Transcript) -> tuple[Any, ...]:
    return done.text, done.token_ids, [*(done.logprobs or ())], done.finish_reason, done.stop_reason


@settings(max_examples=150)
@given(data=st.data())
def test_cuts_do_not_matter(tiny: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.text(alphabet="abé🎉 ", min_size=1, max_size=14))
    ids = tiny.encode(text, add_special_tokens=False)
    sampling = SamplingParams(
        stop=tuple(data.draw(st.lists(st.text("abé🎉 ", min_size=1, max_size=3), max_size=2))),
        include_stop_str_in_output=data.draw(st.booleans()),
        min_tokens=data.draw(st.integers(0, 4)),
    )
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(ids) - 1)), max_size=6)))
    cuts = [cut for cut in cuts if cut < len(ids)]
    one_by_one = _run(tiny, sampling, ids, list(range(1, len(ids))))
    assert _meaning(_run(tiny, sampling, ids, cuts)) == _meaning(one_by_one)
    assert len(one_by_one.logprobs or []) == len(one_by_one.token_ids)
    if not sampling.stop:
        assert one_by_one.text == text


def test_tokens_behind_a_stop_string_are_not_counted(tiny: Tokenizer, tokenizer: Backend) -> None:
    ids = tokenizer.encode("abcdef").ids
    choice = Choice(0, SamplingParams(stop=("bc",)), tiny)
    update = choice.accept(TokenDelta("r", ids))
    assert (update.text, update.finish_reason, update.stop_reason) == ("a", "stop", "bc")
    assert update.token_ids == ids[:3]
    assert choice.num_tokens == 3


@given(cuts=st.lists(st.integers(1, 20), max_size=4))
@settings(max_examples=40)
def test_tokens_of_reasoning_are_counted_however_they_were_cut(tiny: Tokenizer, cuts: list[int]) -> None:
    ids = tiny.encode("<think>Hm</think>Ah", add_special_tokens=False)
    choice = Choice(0, SamplingParams(), tiny, MessageParser(THINK))
    for begin, end in pairwise([0, *sorted(set(cuts)), len(ids)]):
        choice.accept(TokenDelta("r", ids[begin:end], finish_reason="length" if end == len(ids) else None))
    # From the end of the opening tag on, one token per byte; not the one that closes the reasoning.
    assert choice.num_reasoning == len(">Hm</think")
