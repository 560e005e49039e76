"""An embedding, made of the sums read back for its prompt's chunks."""

from collections.abc import Sequence

import numpy as np


def unit_vector(sums: Sequence[bytes]) -> bytes:
    """The direction of the sum of some vectors f32[E], which is that of their mean, as f32[E] of length 1.

    Zeros stay zeros. Little-endian, as are the parts.
    """
    total = np.sum([np.frombuffer(part, "<f4") for part in sums], axis=0, dtype=np.float64)
    length = float(np.linalg.norm(total))
    return (total / length if length else total).astype("<f4").tobytes()
