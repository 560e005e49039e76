"""Paged attention: the definition itself, the choice of an implementation, what splitting may not change."""

import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels.paged_attention as op
from pallas_kernels import KernelInputs
from pallas_kernels.gpu_target import abstract_gpus
from pallas_kernels.paged_attention import triton_decode
from pallas_kernels.paged_attention.cases import CASES, Case, Row
from pallas_kernels.paged_attention.decode_parts import PROGRAMS_PER_CORE, Splitting, choose_splitting
from pallas_kernels.paged_attention.reference import reference
from pallas_kernels.paged_attention.target import H200, Target
from pallas_kernels.paged_attention.triton_decode import MAX_SPLITS, paged_attention_decode
from pallas_kernels.paged_attention.triton_prefill import paged_attention_prefill

DECODE = Case("decode", 4, 2, 64, 16, (Row(1, 100), Row(1, 7), Row(1, 33)), "float32", padding_rows=1)
MIXED = Case("mixed", 6, 2, 16, 16, (Row(3, 40), Row(1, 17), Row(5, 5)), "float32", padding_rows=1, padding_tokens=2)


def _by_loops(inputs: KernelInputs, scale: float, window: int | None, cap: float | None) -> np.ndarray:
    """Attention as the definition says it in words: one query, one head, one key at a time, in float64."""
    q, k_pages, v_pages, table, starts, lengths, *sinks = (np.asarray(array, np.float64) for array in inputs.args)
    table, starts, lengths = table.astype(int), starts.astype(int), lengths.astype(int)
    B, G = k_pages.shape[2], q.shape[1] // k_pages.shape[1]
    out = np.zeros_like(q)
    for s in range(len(lengths)):
        query_len = starts[s + 1] - starts[s]
        for i in range(query_len):
            position = lengths[s] - query_len + i
            first = 0 if window is None else max(0, position - window + 1)
            for h in range(q.shape[1]):
                query = q[starts[s] + i, h]
                slots = [(table[s, p // B], h // G, p % B) for p in range(first, position + 1)]
                scores = np.array([query @ k_pages[slot] for slot in slots]) * scale
                scores = scores if cap is None else cap * np.tanh(scores / cap)
                extra = np.array([array[h] for array in sinks])  # takes a share and gives nothing
                weights = np.exp(scores - scores.max())
                total = weights.sum() + np.exp(extra - scores.max()).sum()
                out[starts[s] + i, h] = weights @ np.array([v_pages[slot] for slot in slots]) / total
    return out


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(("window", "cap"), [(None, None), (6, None), (None, 2.0), (6, 2.0)])
def test_reference_agrees_with_plain_loops(window, cap, sinks):
    inputs = replace(MIXED, sinks=sinks).make(3)
    static = {"scale": 0.3, "sliding_window": window, "soft_cap": cap}
    got = np.asarray(reference(*inputs.args, **static))
    # float32 against float64 over sums of at most 40 terms
    np.testing.assert_allclose(got, _by_loops(inputs, 0.3, window, cap), atol=3e-6)


@pytest.mark.parametrize("num_splits", [1, 2, 3, 8, 50])
def test_any_number_of_splits_gives_the_reference(num_splits):
    inputs = DECODE.make(5)
    static = {"scale": 0.125, "sliding_window": 70}
    got = paged_attention_decode(*inputs.args, **static, num_splits=num_splits, interpret=True)
    np.testing.assert_allclose(got, reference(*inputs.args, **static), atol=2e-6)


def test_a_row_is_bitwise_the_same_alone_and_in_a_batch_when_splits_are_pinned():
    q, k_pages, v_pages, table, starts, lengths = DECODE.make(6).args
    run = jax.jit(lambda *args: paged_attention_decode(*args, scale=0.125, num_splits=4, interpret=True))
    together = run(q, k_pages, v_pages, table, starts, lengths)
    alone = run(q[1:2], k_pages, v_pages, table[1:2], jnp.array([0, 1]), lengths[1:2])
    assert np.array_equal(together[1:2], alone)


def splitting(rows: int, keys: int, heads: int = 8, window: int | None = None) -> Splitting:
    """On an H200, in blocks of 64 keys; the heads of a Llama-3.1-8B."""
    return choose_splitting(rows, heads, keys, 64, window, H200.num_cores, most=MAX_SPLITS)


def parts(split: Splitting, *lengths: int) -> list[int]:
    return np.asarray(split.parts(jnp.array(lengths, jnp.int32))).tolist()


def test_parts_fill_the_gpu_and_never_outnumber_the_keys() -> None:
    assert parts(splitting(1, 8192), 8192)[0] >= 32  # one sequence spreads over the chip
    assert splitting(1, 100).most == 1  # nothing to share
    assert splitting(256, 1024).most == 1  # full without splitting
    assert parts(splitting(256, 131072), 131072, 1024, 0) == [32, 1, 0]  # one long row may not trail


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("rows", [1, 32, 256])
def test_parts_cover_each_live_block_once(rows: int, window: int | None) -> None:
    split = splitting(rows, 131072, window=window)
    for length in (0, 1, 63, 64, 65, 1000, 4097, 131072):
        at = jnp.int32(length)
        covered = [int(b) for part in range(parts(split, length)[0]) for b in np.arange(*split.blocks(at, part))]
        assert covered == list(range(*map(int, split.live_blocks(at))))
        assert parts(split, length)[0] <= split.most


@pytest.mark.parametrize("longest", [32768, 131072])
@pytest.mark.parametrize(("batch", "context"), [(1, 32768), (256, 1024)])
def test_every_sm_of_an_h200_has_work(batch: int, context: int, longest: int) -> None:
    split = splitting(batch, longest)
    busy = 8 * min(split.programs, sum(parts(split, *[context] * batch)))
    assert busy >= PROGRAMS_PER_CORE * H200.num_cores * 0.9


@pytest.mark.parametrize("contexts", [[1024] * 256, [*range(1, 1025, 4)], [131072] * 2 + [1024] * 254])
def test_programs_without_work_are_few_however_long_contexts_may_be(contexts: list[int]) -> None:
    split = splitting(256, 131072)
    dead = split.programs - min(split.programs, sum(parts(split, *contexts)))
    assert dead <= 0.05 * split.programs
    turns = -(-sum(parts(split, *contexts)) // split.programs)
    assert turns <= 2  # a long row's parts are dealt out to all


def test_rows_of_any_length_share_few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program takes several parts, of several rows, one of which is empty."""
    case = Case("turns", 4, 2, 64, 16, (Row(1, 200), Row(1, 1), Row(1, 90), Row(1, 33)), "float32", padding_rows=2)
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    inputs = case.make(seed)
    chosen = Splitting(16, None, wanted=4, most=4, programs=3)
    monkeypatch.setattr(triton_decode, "choose_splitting", lambda *args, **static: chosen)
    got = paged_attention_decode(*inputs.args, scale=0.125, interpret=True)
    np.testing.assert_allclose(got, reference(*inputs.args, scale=0.125), atol=2e-6, err_msg=f"seed {seed}")


def test_gpu_without_float8_takes_its_bits_apart():
    [case] = [case for case in CASES if case.name == "mixed_fp8_f32_d80"]
    inputs, old = case.make(4), Target("gpu", 108, (8, 0))
    static = {name: value for name, value in inputs.static.items() if name != "decode"}
    run = jax.jit(lambda *args: paged_attention_prefill(*args, **static, target=old, interpret=True))
    expected = np.asarray(reference(*inputs.args, **static), np.float32)
    error = np.abs(np.asarray(run(*inputs.args), np.float32) - expected) / np.maximum(1, np.abs(expected))
    assert error.max() < case.tolerance


def test_auto_is_xla_on_a_cpu():
    inputs = DECODE.make(7)
    auto, xla = (op.paged_attention(*inputs.args, **inputs.static, implementation=name) for name in ("auto", "xla"))
    assert np.array_equal(auto, xla)


@pytest.mark.parametrize("case", [DECODE, replace(MIXED, sinks=True)], ids=["decode", "mixed with sinks"])
def test_a_prepared_plan_changes_no_result(case):
    inputs = case.make(8)
    q, k_pages, _, *step = inputs.args[:6]
    sizes = {"tokens": q.shape[0], "pages": k_pages.shape[0], "page_size": case.B}
    plan = op.prepare(*step, **sizes, decode=case.decode)
    assert plan is not None
    planned = op.paged_attention(*inputs.args, **inputs.static, plan=plan)
    np.testing.assert_allclose(planned, op.paged_attention(*inputs.args, **inputs.static), atol=2e-6)


@pytest.mark.parametrize("implementation", ["auto", "triton", "reference"])
def test_nothing_is_prepared_for_a_gpu(implementation):
    q, k_pages, _, *step = DECODE.make(8).args
    sizes = {"tokens": q.shape[0], "pages": k_pages.shape[0], "page_size": DECODE.B}
    with abstract_gpus("h100"):
        assert op.prepare(*step, **sizes, decode=True, implementation=implementation) is None


def test_auto_is_triton_on_a_gpu_and_logs_why_not_once(caplog):
    def lowered(page_size: int) -> str:
        inputs = Case("one", 4, 2, 64, page_size, (Row(1, 30),), padding_rows=1).make(0)
        run = jax.jit(lambda *args: op.paged_attention(*args, **inputs.static))
        with abstract_gpus("h100"):
            return run.trace(*inputs.args).lower(lowering_platforms=("cuda",)).as_text()

    with caplog.at_level(logging.WARNING):
        assert "xla.gpu.triton" in lowered(page_size=16)
        assert not caplog.records
        assert "xla.gpu.triton" not in lowered(page_size=8)
        lowered(page_size=8)
    [record] = caplog.records
    assert "page sizes 16, 32, 64 and 128; got 8" in record.getMessage()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B": 8}, "page sizes"),
        ({"D": 20}, "head dims"),
        ({"D": 264}, "head dims"),
        ({"H": 130, "K": 1}, "query heads"),
        ({"dtype": "int8"}, "all bfloat16, all float16 or all float32"),
    ],
)
@pytest.mark.parametrize("rows", [(Row(1, 9),), (Row(2, 9),)])
def test_unsupported_shapes_are_refused_with_what_is_supported(change, message, rows):
    shape = {"H": 4, "K": 2, "D": 64, "B": 16, "dtype": "float32"} | change
    T, S, N, P = rows[0].query_len, 1, 2, 2
    floats = (
        jax.ShapeDtypeStruct((T, shape["H"], shape["D"]), shape["dtype"]),
        *[jax.ShapeDtypeStruct((N, shape["K"], shape["B"], shape["D"]), shape["dtype"])] * 2,
    )
    integers = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((S, P), (S + 1,), (S,))]
    with pytest.raises(NotImplementedError, match=message):
        jax.eval_shape(
            lambda *args: op.paged_attention(*args, scale=1.0, decode=T == 1, implementation="triton"),
            *floats,
            *integers,
        )


def test_unknown_implementation_is_named():
    inputs = DECODE.make(0)
    with pytest.raises(ValueError, match="'cudnn'; choose auto, reference, xla, native, triton or mosaic"):
        op.paged_attention(*inputs.args, **inputs.static, implementation="cudnn")
