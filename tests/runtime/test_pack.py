"""Plans as flat arrays: every number is where the device looks for it."""

from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jserve.protocol import Request, SamplingParams
from jserve.runtime.pack import FIELDS, PackedBatch, Rows, SlotSampling, bias_row, history_rows, pack_batch
from jserve.runtime.sampling import INTEGER_FIELDS, Variant
from jserve.runtime.shapes import Bucket, EngineShape
from jserve.runtime.step import StepLayout
from jserve.schedule.plan import PageRun, ScheduledChunk, StepPlan
from jserve.schedule.sequence import Sequence

SHAPE = EngineShape(
    max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64, page_size=4, num_pages=50, vocab_size=20
)
BUCKET = Bucket(16, 4)


def sequence(tokens: list[int], num_prompt: int | None = None, name: str = "r", **sampling: Any) -> Sequence:
    prompt = tokens[: len(tokens) if num_prompt is None else num_prompt]
    request = Request(name, prompt, SamplingParams(**sampling))
    made = Sequence.of(request, arrival_number=1, max_total=64, page_size=4, eos_token_ids=frozenset({2}))
    made.token_ids[:] = array("i", tokens)
    return made


def chunk(of: Sequence, slot: int, start: int, length: int, **fields: Any) -> ScheduledChunk:
    end = start + length
    defaults: dict[str, Any] = {
        "samples": True,
        "output_index": end - of.num_prompt,
        "is_first": start == 0,
        "page_updates": (),
    }
    return ScheduledChunk(of, slot, start, length, **{**defaults, **fields})


def plan_of(*chunks: ScheduledChunk) -> StepPlan:
    return StepPlan(chunks, sum(part.length for part in chunks))


def pack(plan: StepPlan, bucket: Bucket = BUCKET, shape: EngineShape = SHAPE) -> PackedBatch:
    return pack_batch(plan, Rows.of(plan), bucket, shape)


def pack_sampling(slots: SlotSampling, plan: StepPlan) -> np.ndarray:
    return slots.pack(Rows.of(plan), pack(plan))


def needs(slots: SlotSampling, plan: StepPlan) -> Variant | None:
    actual = slots.needs(Rows.of(plan))
    return None if actual is None else actual.variant


def unpack(packed: np.ndarray, bucket: Bucket = BUCKET, shape: EngineShape = SHAPE) -> dict[str, np.ndarray]:
    layout = StepLayout(bucket, shape.page_updates(bucket))
    assert packed.shape == (layout.size,)
    assert packed.dtype == np.int32
    batch = layout.split(packed)  # type: ignore[arg-type]
    return {name: np.asarray(getattr(batch, name)) for name in batch.__dataclass_fields__}


def test_decodes_and_prompts_lie_one_after_the_other() -> None:
    decode = chunk(sequence([5, 6, 7, 8, 9], 3), 2, 4, 1)
    prompt = chunk(sequence([11, 12, 13, 14, 15, 16]), 0, 1, 4, samples=False)
    actual = unpack(pack(plan_of(decode, prompt)).vector)
    assert actual["token_ids"].tolist() == [9, 12, 13, 14, 15, *[0] * 11]
    assert actual["slots"].tolist() == [2, 0, 4, 4]
    assert actual["query_start"].tolist() == [0, 1, 5, 5, 5]
    assert actual["context_len"].tolist() == [5, 5, 0, 0]
    assert (actual["page_updates"][:, 0] == 4).all()


def test_tokens_that_are_still_on_the_device_are_minus_one() -> None:
    pending = sequence([5, 6, 7])
    decode = chunk(pending, 1, 3, 1)
    tail = chunk(pending, 1, 1, 3)
    assert unpack(pack(plan_of(decode)).vector)["token_ids"][0] == -1
    assert unpack(pack(plan_of(tail)).vector)["token_ids"][:3].tolist() == [6, 7, -1]


def test_page_updates_name_slot_place_and_page() -> None:
    first = chunk(sequence(list(range(6))), 3, 0, 6, page_updates=(PageRun(0, 0, (40, 41)),))
    later = chunk(sequence(list(range(9)), 8), 1, 8, 1, page_updates=(PageRun(0, 2, (7,)),))
    packed = pack(plan_of(later, first))
    updates = unpack(packed.vector)["page_updates"]
    assert updates[:3].tolist() == [[1, 2, 7], [3, 0, 40], [3, 1, 41]]
    assert (updates[3:, 0] == SHAPE.max_num_seqs).all()
    assert not len(packed.late_updates)


def test_page_updates_of_cache_groups_go_to_tables_of_their_own() -> None:
    shape = replace(SHAPE, windows=(None, 6, 6))
    first = chunk(sequence(list(range(30))), 3, 28, 2, page_updates=(PageRun(0, 0, (40, 41)), PageRun(2, 5, (8, 9))))
    packed = pack(plan_of(first), shape=shape)
    updates = unpack(packed.vector, shape=shape)["page_updates"]
    assert updates[:4].tolist() == [[3, 0, 40], [3, 1, 41], [2 * 4 + 3, 5, 8], [2 * 4 + 3, 6, 9]]
    assert (updates[4:, 0] == 3 * 4).all()


def test_page_updates_beyond_the_bucket_come_back_in_order() -> None:
    """A prompt with a long shared prefix brings more pages than its few tokens have room for."""
    bucket = Bucket(2, 2)
    room = SHAPE.page_updates(bucket)
    pages = tuple(range(20, 20 + room + 5))
    packed = pack(plan_of(chunk(sequence([1]), 2, 0, 1, page_updates=(PageRun(0, 0, pages),))), bucket)
    late = packed.late_updates
    entries = [*unpack(packed.vector, bucket)["page_updates"].tolist(), *late.tolist()]
    assert entries == [[2, index, page] for index, page in enumerate(pages)]
    assert len(late) == 5


def test_decodes_that_are_known_as_such_are_packed_alike() -> None:
    known = chunk(sequence([5, 6, 7, 8, 9], 3), 2, 4, 1, page_updates=(PageRun(0, 1, (33,)),))
    pending = chunk(sequence([5, 6, 7]), 1, 3, 1)
    prompt = chunk(sequence([11, 12, 13, 14, 15, 16]), 0, 1, 4, samples=False)
    slots = SlotSampling(SHAPE)
    for part in (known, pending, prompt):
        slots.enter(part.slot, part.sequence)
    plain, reported = (
        plan_of(known, pending, prompt),
        replace(plan_of(known, pending, prompt), num_decodes=2, with_updates=(0,)),
    )
    np.testing.assert_array_equal(pack(plain).vector, pack(reported).vector)
    np.testing.assert_array_equal(pack_sampling(slots, plain), pack_sampling(slots, reported))
    assert needs(slots, plain) == needs(slots, reported) == Variant(draws=True)


SET = {
    "temperature": 0.5,
    "top_p": 0.9,
    "min_p": 0.1,
    "top_k": 7,
    "repetition_penalty": 1.5,
    "frequency_penalty": 0.25,
    "presence_penalty": -0.5,
}


def test_sampling_of_a_slot_reaches_its_row() -> None:
    slots = SlotSampling(SHAPE)
    one, other = sequence([1, 2, 3, 4], 2, **SET), sequence([1], temperature=0.0)
    slots.enter(3, one)
    slots.enter(0, other)
    packed = pack_sampling(slots, plan_of(chunk(other, 0, 0, 1), chunk(one, 3, 3, 1)))
    floats = packed.view(np.float32)
    for name, value in SET.items():
        line = FIELDS[name]
        assert (packed if line < INTEGER_FIELDS else floats)[line, 1] == np.float32(value), name
    assert packed[FIELDS["slots"]].tolist() == [0, 3, 4, 4]
    assert packed[FIELDS["output_index"], :2].tolist() == [0, 2]
    assert floats[FIELDS["temperature"]].tolist() == [0, 0.5, 0, 0]
    assert packed[FIELDS["top_k"]].tolist() == [20, 7, 20, 20]


def test_rows_that_do_not_sample_have_no_slot_and_need_nothing() -> None:
    slots = SlotSampling(SHAPE)
    part, whole = sequence([1, 2, 3], logprobs=3, **SET), sequence([4], temperature=0.0)
    slots.enter(0, part)
    slots.enter(1, whole)
    early, last = chunk(part, 0, 0, 2, samples=False), chunk(whole, 1, 0, 1)
    assert pack_sampling(slots, plan_of(early, last))[FIELDS["slots"]].tolist() == [4, 1, 4, 4]
    assert needs(slots, plan_of(early, last)) == Variant()
    assert needs(slots, plan_of(early)) is None


@pytest.mark.parametrize(
    ("params", "needed"),
    [
        ({"temperature": 0.0}, Variant()),
        ({"temperature": 1e-6}, Variant()),
        ({}, Variant(draws=True)),
        ({"temperature": 0.0, "logprobs": 0}, Variant()),
        ({"temperature": 0.0, "logit_bias": {3: 1.0}}, Variant(edits=True)),
        ({"temperature": 0.0, "min_tokens": 1}, Variant(edits=True)),
        ({"presence_penalty": 0.5, "logprobs": 2}, Variant(draws=True, edits=True)),
        ({"top_k": 5}, Variant(draws=True, filters=True)),
        ({"top_p": 0.5}, Variant(draws=True, filters=True)),
        ({"temperature": 0.0, "top_p": 0.5}, Variant()),
    ],
)
def test_a_batch_needs_what_one_of_its_rows_needs(params: dict[str, Any], needed: Variant) -> None:
    slots = SlotSampling(SHAPE)
    special, plain = sequence([1], **params), sequence([1], temperature=0.0)
    slots.enter(0, plain)
    slots.enter(2, special)
    plan = plan_of(chunk(plain, 0, 0, 1), chunk(special, 2, 0, 1))
    actual = slots.needs(Rows.of(plan))
    assert actual is not None
    assert (actual.variant, actual.logprobs) == (needed, "logprobs" in params)
    assert slots.with_logprobs(Rows.of(plan)).tolist() == ([1] if "logprobs" in params else [])
    apart, left = slots.split_costly(Rows.of(plan))
    is_costly = needed.filters or needed.edits
    assert (apart.tolist(), left) == (([1], Variant()) if is_costly else ([], needed))


def test_rows_that_do_not_sample_are_never_taken_apart() -> None:
    slots = SlotSampling(SHAPE)
    part, whole = sequence([1, 2, 3], logprobs=3, **SET), sequence([4])
    slots.enter(0, part)
    slots.enter(1, whole)
    rows = Rows.of(plan_of(chunk(part, 0, 0, 2, samples=False), chunk(whole, 1, 0, 1)))
    assert slots.with_logprobs(rows).tolist() == []
    apart, left = slots.split_costly(rows)
    assert (apart.tolist(), left) == ([], Variant(draws=True))


def test_few_rows_are_packed_with_their_numbers_and_padding_that_samples_for_nobody() -> None:
    slots = SlotSampling(SHAPE)
    first, second = sequence([1, 2, 3, 4], 2, **SET), sequence([1], temperature=0.0)
    slots.enter(3, first)
    slots.enter(0, second)
    packed = pack_sampling(slots, plan_of(chunk(second, 0, 0, 1), chunk(first, 3, 3, 1)))
    few = slots.pack_few(packed, np.array([1]), 2)
    assert few[-1].tolist() == [1, BUCKET.rows]
    np.testing.assert_array_equal(few[:-1, 0], packed[:, 1])
    np.testing.assert_array_equal(few[:-1, 1], packed[:, 2])


def test_a_slot_forgets_the_request_that_left_it() -> None:
    slots = SlotSampling(SHAPE)
    slots.enter(1, sequence([1], logprobs=3, **SET))
    plain = sequence([1], temperature=0.0)
    slots.enter(1, plain)
    plan = plan_of(chunk(plain, 1, 0, 1))
    assert needs(slots, plan) == Variant()
    fresh = SlotSampling(SHAPE)
    fresh.enter(1, plain)
    np.testing.assert_array_equal(pack_sampling(slots, plan), pack_sampling(fresh, plan))


@pytest.mark.parametrize("top_k", [0, -1, 20, 21, 1_000_000])
def test_top_k_that_filters_nothing_is_the_whole_vocabulary(top_k: int) -> None:
    slots = SlotSampling(SHAPE)
    one = sequence([1], top_k=top_k)
    slots.enter(0, one)
    assert pack_sampling(slots, plan_of(chunk(one, 0, 0, 1)))[FIELDS["top_k"], 0] == 20


def seed_of(name: str, seed: int | None) -> int:
    slots = SlotSampling(SHAPE)
    one = sequence([1], name=name, seed=seed)
    slots.enter(0, one)
    return int(pack_sampling(slots, plan_of(chunk(one, 0, 0, 1)))[FIELDS["seed"], 0])


def test_seed_is_the_requests_own_and_otherwise_made_of_its_id() -> None:
    assert seed_of("a", 7) == seed_of("b", 7)
    seeds = [seed_of("a", seed) for seed in (0, 1, 7, -1, 2**31, 2**63 - 1, None)]
    assert len({*seeds, seed_of("b", None)}) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_history_counts_the_output_and_marks_the_prompt() -> None:
    counts, in_prompt = history_rows(sequence([3, 3, 5, 7, 7, 3], 3), 20)
    assert counts.dtype == np.int16
    assert {int(token): int(counts[token]) for token in np.flatnonzero(counts)} == {3: 1, 7: 2}
    assert np.flatnonzero(in_prompt).tolist() == [3, 5]


def test_history_of_a_very_long_repetition_stays_within_its_type() -> None:
    counts, _ = history_rows(sequence([1] + [4] * 40_000, 1), 20)
    assert counts[4] == np.iinfo(np.int16).max


def test_bias_bans_every_stop_token_until_min_tokens_have_come() -> None:
    banned = sequence([1], min_tokens=3, stop_token_ids=(9, 19), logit_bias={4: -1.5, 9: 50.0})
    expected = np.zeros(20, np.float32)
    expected[4], expected[9] = -1.5, 50.0
    np.testing.assert_array_equal(bias_row(banned, 3, 20), expected)
    expected[[2, 9, 19]] = -np.inf
    np.testing.assert_array_equal(bias_row(banned, 2, 20), expected)


def test_bias_without_stop_tokens_bans_nothing() -> None:
    assert not bias_row(sequence([1], min_tokens=3, ignore_eos=True), 0, 20).any()
