"""Products of one and two rows over bfloat16 bits."""

import jax
import ml_dtypes
import numpy as np
import pytest

from jserve.layers import small_batch


@pytest.mark.parametrize("inputs", [15, 16, 64, 576, 1536, 14336])
@pytest.mark.parametrize("tokens", [1, 2])
def test_a_product_is_that_of_float32(inputs: int, tokens: int) -> None:
    rng = np.random.default_rng(inputs)
    x = rng.standard_normal((tokens, inputs), np.float32)
    weight = rng.standard_normal((3, 5, inputs), np.float32).astype(ml_dtypes.bfloat16)
    got = np.asarray(jax.jit(small_batch.product)(x, weight.view(np.uint16)))
    want = np.einsum("ti,abi->tab", x.astype(np.float64), weight.astype(np.float64))
    # Each of n roundings is at most 2**-24 of a sum that stays near sqrt(n); x in bfloat16 would err 2**-9 of it.
    np.testing.assert_allclose(got, want, rtol=0, atol=inputs**0.5 * 2**-19)


def test_a_row_does_not_depend_on_the_other() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 576), np.float32)
    bits = rng.standard_normal((96, 576), np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    product = jax.jit(small_batch.product)
    np.testing.assert_array_equal(product(x[:2], bits)[0], product(x[[0, 2]], bits)[0])
