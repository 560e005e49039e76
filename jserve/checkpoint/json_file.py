"""JSON objects from a model's directory. Needs no numpy, so the API process reads configurations with it."""

import json
from pathlib import Path
from typing import Any

from jserve.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The object that the file holds. Raises CheckpointError where there is none."""
    try:
        parsed = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; --model takes a directory in Hugging Face format or a .gguf file"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} holds a JSON {type(parsed).__name__} but must hold an object")
    return parsed
