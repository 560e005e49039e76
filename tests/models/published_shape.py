"""What is known of a published checkpoint."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Published:
    """Fields that matter, and how many parameters the checkpoint holds."""

    fields: dict[str, Any]
    parameters: int
