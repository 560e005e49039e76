"""docs/api.md leaves out no endpoint and no field."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from jserve.api.app import BODIES, ROUTES

API = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
OLLAMA = (Path(__file__).parent.parent / "docs" / "from-ollama.md").read_text()


@pytest.mark.parametrize("path", sorted({path for _, path, _ in ROUTES}))
def test_every_route_is_described(path: str) -> None:
    words = re.sub(r"\{(\w+):path\}|\{(\w+)\}", "{", path).split("{")[0].rstrip("/") or "/"
    assert words in API or words.rpartition("/")[2] in API, path


def fields_of(body: type[BaseModel]) -> list[str]:
    names = []
    for name, field in body.model_fields.items():
        alias: Any = field.validation_alias
        names.append(field.alias or (alias.choices[0] if hasattr(alias, "choices") else name))
    return names


@pytest.mark.parametrize(
    ("path", "field"), [(path, field) for path, body in sorted(BODIES.items()) for field in fields_of(body)]
)
def test_every_field_is_described(path: str, field: str) -> None:
    text = OLLAMA + API if path.startswith("/api") else API
    assert f"`{field}`" in text
