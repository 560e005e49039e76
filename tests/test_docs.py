"""docs/api.md leaves out no endpoint and no field."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from jserve.api.app import BODIES, ROUTES

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path for path in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
MADE_ELSEWHERE = {"pallas_kernels/tuned/DEVICE.toml", "models/SmolLM2-135M-Instruct.Q4_1.gguf"}
"""What tools write or fetch."""
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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """Those of this repository: in backticks, with a folder and an ending."""
    folders = "jserve|pallas_kernels|tests|benchmarks|docs|deploy|models|quant"
    named = set(re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)", page.read_text())) - MADE_ELSEWHERE
    missing = [name for name in named if not any((ROOT / place / name).exists() for place in ("", "tests", "jserve"))]
    assert not missing
