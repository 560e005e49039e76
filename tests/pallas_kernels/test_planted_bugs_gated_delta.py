"""The comparison with the reference catches the bugs that a tiled gated delta rule would have."""

from pathlib import Path

import jax
import numpy as np
import pytest

from pallas_kernels.gated_delta.cases import CASES
from pallas_kernels.gated_delta.reference import reference
from tests.pallas_kernels.planted_bugs import Mutant, module

BY_NAME = {case.name: case for case in CASES}
XLA, MIXED, LONG = "xla.py", "mixed_short_and_long", "long_rows"
MUTANTS = (
    Mutant("a state is not decayed before it is read", XLA, "tokens.k, state) * decayed", "tokens.k, state)", MIXED),
    Mutant("later tokens of a tile are seen", XLA, "earlier = order[:, None] >= order", "earlier = order >= 0", MIXED),
    Mutant(
        "blocks are not put together",
        XLA,
        "below = -_einsum(",
        "below = -0 * _einsum(",
        LONG,
    ),
    Mutant(
        "a fresh row takes what its slot held", XLA, "jnp.where(is_fresh[row] & (tile == 0), 0, state)", "state", MIXED
    ),
    Mutant(
        "each tile of a fresh row starts anew", XLA, "is_fresh[row] & (tile == 0)", "is_fresh[row]", "one_fresh_row"
    ),
    Mutant("a short fresh row takes what its slot held", XLA, "is_fresh[:, None, None, None, None]", "False", "decode"),
    Mutant("tokens behind a row change its state", XLA, "< query_start[row + 1] - first", "< size", LONG),
    Mutant(
        "padding rows write a state",
        XLA,
        '.at[slots].set(state, mode="drop")',
        '.at[slots].set(state, mode="clip")',
        "decode",
    ),
    Mutant(
        "keys are not corrected by what is held",
        XLA,
        "(tokens.v - held)",
        "tokens.v",
        "decode",
    ),
)


def error(package: str, mutant: Mutant) -> float:
    """The largest error of the results and of the states, as a multiple of what the case tolerates."""
    case = BY_NAME[mutant.case]
    inputs = case.make(1)
    kernel = module(package, "gated_delta").gated_delta
    run = jax.jit(lambda *args: kernel(*args, **inputs.static)).lower(*inputs.args)
    results = run.compile({"xla_backend_optimization_level": 0})(*inputs.args)
    expected = reference(*inputs.args, **inputs.static)
    errors = [
        np.abs(np.asarray(actual) - np.asarray(right)) / np.maximum(1, np.abs(np.asarray(right)))
        for actual, right in zip(results, expected, strict=True)
    ]
    return max(float(np.nan_to_num(each, nan=np.inf).max() / case.tolerance) for each in errors)


IN_DEFAULT_RUN = {"decode", "one_fresh_row"}
"""Cases; each bug of the others takes seconds to compile."""


def parameters() -> list:
    marks = [() if mutant.case in IN_DEFAULT_RUN else pytest.mark.slow for mutant in MUTANTS]
    return [pytest.param(mutant, marks=mark, id=mutant.id) for mutant, mark in zip(MUTANTS, marks, strict=True)]


@pytest.mark.parametrize("mutant", parameters())
def test_a_planted_bug_is_seen(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error(mutant.plant("gated_delta", tmp_path, monkeypatch), mutant) > 10


@pytest.mark.parametrize("case", sorted(IN_DEFAULT_RUN))
def test_without_a_bug_the_case_passes(case: str) -> None:
    assert error("pallas_kernels", Mutant("none", XLA, "", "", case)) <= 1
