"""Newer families: the logits of one prompt. `test_parity.py` has their tokens, in batches and out of the cache."""

from pathlib import Path

import numpy as np
import pytest

from tests.models.newer_cases import CASES
from tests.models.test_parity import LOGIT_TOLERANCE, PROMPTS
from tests.quant.prefill import prefill_logits
from tests.worlds import make_model, reference, reference_logits


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    architecture, fields = CASES[case]
    folder = make_model(tmp_path, architecture, **fields)
    expected = reference_logits(reference(folder), PROMPTS["long"])
    np.testing.assert_allclose(prefill_logits(folder, PROMPTS["long"]), expected, atol=LOGIT_TOLERANCE)
