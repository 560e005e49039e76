"""How long each part of a visit to a GPU may take, in the order in which they come."""

from benchmarks.parts import Visit

__all__ = ["LIMITS", "limit_of"]

LIMITS = {
    "cases": 100.0,
    "target": 15.0,
    "limits": 15.0,
    "steps": 110.0,
    "startup": 65.0,
    "serving": 50.0,
    "serving-transformers": 45.0,
    "steps-kept-graphs": 40.0,
    "steps-long": 40.0,
}
"""Seconds that each part may take: together eight minutes."""


def limit_of(visit: Visit, part: str) -> float:
    """Seconds for a part; a trial on a CPU compiles three times as long."""
    return LIMITS[part] * (3 if visit.tiny else 1)
