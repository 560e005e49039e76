"""An embedding, made of the sums read back for its prompt's chunks."""

from collections.abc import Sequence

import numpy as np


def pooled_vector(sums: Sequence[bytes], *, normalizes: bool) -> bytes:
    """The sum of some vectors f32[E]; where it `normalizes`, its direction, which is that of their mean, as f32[E] of
    length 1.

    Zeros stay zeros. Little-endian, as are the parts.
    """
    total = np.sum([np.frombuffer(part, "<f4") for part in sums], axis=0, dtype=np.float64)
    length = float(np.linalg.norm(total)) if normalizes else 1.0
    return (total / length if length else total).astype("<f4").tobytes()
