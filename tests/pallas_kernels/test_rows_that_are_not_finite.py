"""Tokens of a step are independent: NaN or infinity of one changes no bit of the others, on each path of a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import Kernel, KernelCase, abstract_inputs, discover
from pallas_kernels.paged_attention.cases import Case, Row
from pallas_kernels.paged_attention.xla import paged_attention_xla

ON_A_CPU = ("xla", "native")
CHAINED = "gated_delta"
"""The kernel whose tokens depend on those before them in their row; its rows are independent."""


def _supports(kernel: Kernel, implementation: str, case: KernelCase) -> bool:
    inputs = abstract_inputs(case)
    try:
        jax.eval_shape(functools.partial(kernel.implementations[implementation], **inputs.static), *inputs.args)
    except NotImplementedError:
        return False
    return len(inputs.args[0].shape) > 1 and inputs.args[0].shape[0] > 2


def _parameters() -> list:
    chosen = []
    for kernel in (kernel for kernel in discover() if kernel.name != CHAINED):
        for implementation in (name for name in ON_A_CPU if name in kernel.implementations):
            cases = [case for case in kernel.cases if case.quick and _supports(kernel, implementation, case)]
            picked = {0, len(cases) - 1} if cases else set()
            chosen += [
                pytest.param(kernel, implementation, cases[i], id=f"{kernel.name}-{implementation}-{cases[i].name}")
                for i in sorted(picked)
            ]
    return chosen


@pytest.mark.parametrize(("kernel", "implementation", "case"), _parameters())
def test_a_token_that_is_not_finite_leaves_the_others_as_they_are(
    kernel: Kernel, implementation: str, case: KernelCase
) -> None:
    """The first argument of each kernel holds the tokens."""
    inputs = case.make(0)
    run = jax.jit(functools.partial(kernel.implementations[implementation], **inputs.static))
    tokens, rest = jnp.asarray(inputs.args[0]), inputs.args[1:]
    clean = np.asarray(run(tokens, *rest), np.float64)
    for token, value in ((tokens.shape[0] // 2, jnp.nan), (0, jnp.inf)):
        spoilt = np.asarray(run(tokens.at[token].set(value), *rest), np.float64)
        np.testing.assert_array_equal(np.delete(spoilt, token, 0), np.delete(clean, token, 0))


@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 1, 16)])
@pytest.mark.parametrize("queries", [1, 3, 70])
def test_keys_and_values_that_are_not_finite_stay_with_their_sequence(
    heads: tuple[int, int, int], queries: int
) -> None:
    """Single queries, short rows and tiles, beside rows of the other kinds."""
    H, K, D = heads
    rows = (Row(1, 300), Row(queries, 200), Row(1, 33), Row(70, 70), Row(2, 5))
    inputs = Case("spoilt", H, K, D, 16, rows, "float32").make(0)
    run = jax.jit(functools.partial(paged_attention_xla, **inputs.static))
    q, k_pages, v_pages, page_table, query_start, *rest = inputs.args
    clean = np.asarray(run(*inputs.args))
    pages = page_table[1, : -(-200 // 16)]
    keys, values = (array.at[pages].set(jnp.nan) for array in (k_pages, v_pages))
    spoilt = np.asarray(run(q, keys, values, page_table, query_start, *rest))
    mine = np.arange(query_start[1], query_start[2])
    assert np.isnan(spoilt[mine]).all()
    np.testing.assert_array_equal(np.delete(spoilt, mine, 0), np.delete(clean, mine, 0))


def _chained() -> list:
    (kernel,) = (kernel for kernel in discover() if kernel.name == CHAINED)
    cases = [case for case in kernel.cases if case.quick]
    return [pytest.param(kernel, case, id=case.name) for case in (cases[0], cases[-1])]


@pytest.mark.parametrize(("kernel", "case"), _chained())
def test_a_row_with_a_state_that_is_not_finite_leaves_other_rows_as_they_are(kernel: Kernel, case: KernelCase) -> None:
    inputs = case.make(0)
    run = jax.jit(functools.partial(kernel.implementations["xla"], **inputs.static))
    q, k, v, decay, beta, states, slots, is_fresh, query_start = map(jnp.asarray, inputs.args)
    clean, kept = map(np.asarray, run(q, k, v, decay, beta, states, slots, is_fresh, query_start))
    is_decode = inputs.static.get("decode", False)
    starts = np.arange(len(slots) + 1) if is_decode else np.asarray(query_start)
    row = int(np.argmax(np.diff(starts) * (np.asarray(slots) < len(states))))
    mine = np.arange(starts[row], starts[row + 1])
    spoilt, left = map(
        np.asarray, run(q, k, v.at[mine[0]].set(jnp.nan), decay, beta, states, slots, is_fresh, query_start)
    )
    assert np.isnan(spoilt[mine]).any()
    np.testing.assert_array_equal(np.delete(spoilt, mine, 0), np.delete(clean, mine, 0))
    np.testing.assert_array_equal(np.delete(left, slots[row], 0), np.delete(kept, slots[row], 0))
