"""Newer families: the logits of one prompt. `test_parity.py` has their tokens, in batches and out of the cache."""

from pathlib import Path

import numpy as np
import pytest

from tests.models.newer_cases import CASES
from tests.models.test_parity import LOGIT_TOLERANCE, PROMPTS
from tests.quant.prefill import prefill_logits
from tests.worlds import make_model, reference, reference_logits

SECOND_FORMS = {
    "arcee",
    "cohere 2 moe, shares",
    "exaone 4, no windows",
    "glm",
    "glm 4 moe, biases, one group",
    "granite moe",
    "granite, windows",
    "solar open",
    "stablelm",
}
"""Another case has what these have; they are in the slow run."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in SECOND_FORMS else ()) for case in CASES]
)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    architecture, fields = CASES[case]
    folder = make_model(tmp_path, architecture, **fields)
    expected = reference_logits(reference(folder), PROMPTS["long"])
    np.testing.assert_allclose(prefill_logits(folder, PROMPTS["long"]), expected, atol=LOGIT_TOLERANCE)
