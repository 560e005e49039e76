"""The comparison with the reference catches the bugs that a product with packed weights could have."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from pallas_kernels import KernelInputs
from pallas_kernels.paged_attention.target import Target
from pallas_kernels.quant_matmul.cases import CASES
from pallas_kernels.quant_matmul.reference import reference
from tests.pallas_kernels.planted_bugs import Mutant, disagreement, module

BY_NAME = {case.name: case for case in CASES}
AMPERE = Target("gpu", 108, (8, 0))
WEIGHT, PRODUCT = "triton_weight.py", "triton_product.py"

MUTANTS = (
    Mutant("halves of a byte swapped", PRODUCT, "return [even, odd]", "return [odd, even]", "int4_decode_asymmetric"),
    Mutant("zero point ignored", PRODUCT, "if shift is None:", "if True:", "int4_decode_asymmetric"),
    Mutant(
        "zero point of 8 bits counted from 8",
        WEIGHT,
        'MIDDLE if self.product.kind == "int4" else 0',
        "MIDDLE",
        "int8_groups_decode",
    ),
    Mutant(
        "zero point times one half's inputs", PRODUCT, "for part in rows)", "for part in rows[:1])", "int4_channels"
    ),
    Mutant(
        "group of the block before",
        PRODUCT,
        "load_group(block + 1, end)",
        "load_group(block, end)",
        "int4_decode_asymmetric",
    ),
    Mutant(
        "scale of outputs forgotten",
        PRODUCT,
        "astype(jnp.float32) * group.scale[:, None]",
        "astype(jnp.float32)",
        "int8_decode",
    ),
    Mutant("splits overlap", PRODUCT, "jnp.minimum(first + share, blocks)", "blocks", "int8_65_rows_tail"),
    Mutant("remainder of the split lost", PRODUCT, "pl.cdiv(blocks, splits)", "blocks // splits", "int4_prefill_bf16"),
    Mutant(
        "splits share a place", PRODUCT, "lax.broadcast(split, sums.shape)", "jnp.zeros_like(m)", "int8_65_rows_tail"
    ),
    Mutant(
        "rows past the last input read",
        PRODUCT,
        "(m < product.T) & (k < product.K)",
        "m < product.T",
        "int4_channels_tail_f16",
    ),
    Mutant("activation order ignored", WEIGHT, "if self.group_index is None else", "if True else", "int4_act_order"),
    Mutant("both halves of the low one's group", WEIGHT, "self.width) + part", "self.width)", "int4_act_order"),
    Mutant(
        "small groups a part too wide",
        WEIGHT,
        "lax.div(k, product.group)",
        "lax.div(k + 1, product.group)",
        "int4_small_groups",
    ),
    Mutant(
        "sign of float8 lost",
        WEIGHT,
        "jnp.float16) * jnp.float16(256)",
        "jnp.float16).__abs__() * jnp.float16(256)",
        "fp8_decode",
    ),
)


@functools.cache
def _expected(case_name: str) -> tuple[KernelInputs, np.ndarray]:
    inputs = BY_NAME[case_name].make(11)
    expected = jax.jit(functools.partial(reference, **inputs.static))(*inputs.args)
    return inputs, np.asarray(expected)


def _disagreement(package: str, case_name: str) -> float:
    """The error of a package's kernel on one case, split in three, on a GPU without float8."""
    inputs, expected = _expected(case_name)
    kernel = module(package, "quant_matmul.triton_product").quant_matmul_triton
    run = functools.partial(kernel, **inputs.static, splits=3, target=AMPERE, interpret=True)
    return disagreement(run, inputs, expected, BY_NAME[case_name])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_planted_bug_is_caught(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = mutant.plant("quant_matmul", tmp_path, monkeypatch)
    assert _disagreement(package, mutant.case) > 1


@pytest.mark.parametrize("case_name", ["int4_decode_asymmetric", "int4_act_order", "int8_65_rows_tail", "fp8_blocks"])
def test_without_a_bug_the_same_check_passes(case_name: str) -> None:
    assert _disagreement("pallas_kernels", case_name) <= 1
