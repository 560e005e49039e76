"""How sizes, counts and times are written on the command line."""

import argparse
import math
import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_COUNT = re.compile(r"(\d+(?:\.\d+)?)([kKmM]?)")
_COUNT_UNITS = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w|)")
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """Bytes of "512M" (powers of 1000), "2GiB" (powers of 1024) or "1073741824"."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it like 512M, 2GiB or 1073741824")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.upper()])


def parse_count(text: str) -> int | None:
    """Tokens, as vLLM reads them: "8192", "8k" (8000), "8K" (8192); None for "auto" and -1."""
    if text in ("auto", "-1"):
        return None
    match = _COUNT.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens; write it like 8192, 8k or 8K")
    return int(float(match[1]) * _COUNT_UNITS[match[2]])


def parse_duration(text: str) -> float:
    """Seconds of "5m", "1.5h", "4w" or "90"; -1, which means for ever, for "-1"."""
    if text == "-1":
        return -1.0
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write it like 90s, 5m, 1h or 90d")
    return float(match[1]) * _SECONDS[match[2]]


def shown_size(num_bytes: int) -> str:
    """Bytes in the largest unit that fits."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if num_bytes >= 1 << power:
            return f"{num_bytes / (1 << power):.{2 if math.log2(num_bytes) - power < 7 else 0}f} {unit}"
    return f"{num_bytes} bytes"
