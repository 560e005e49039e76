"""docs/api.md leaves out no endpoint and no field, and what pages name or link to is there."""

import re
import subprocess
import sys
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
    folders = "jserve|pallas_kernels|tests|benchmarks|configs|docs|deploy|models|quant"
    named = set(re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)", page.read_text())) - MADE_ELSEWHERE
    missing = [name for name in named if not any((ROOT / place / name).exists() for place in ("", "tests", "jserve"))]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 80


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_say_that_tokens_are_read_back(page: Path) -> None:
    """Nothing has a home: "is read back", "arrives" and the like are what a stranger reads once."""
    assert not re.findall(r"\b(?:comes?|came|brings?|brought|takes?|taken|at) home\b", page.read_text())


def glossary() -> list[tuple[str, str, str]]:
    """(our words, vLLM's, the meaning) of each row in docs/design.md."""
    text = (ROOT / "docs" / "design.md").read_text().partition("## Glossary")[2]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    return [(ours.strip(), theirs.strip(), meaning.strip()) for ours, theirs, meaning in rows]


def test_the_glossary_has_vllms_word_and_a_meaning_for_each_of_ours() -> None:
    assert len(glossary()) > 15
    assert all(all(row) for row in glossary())


def test_names_in_the_glossary_are_those_of_the_code() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "jserve").rglob("*.py"))
    names = [name for ours, _, _ in glossary() for name in re.findall(r"`(\w+)`", ours)]
    assert len(names) > 10
    assert not [name for name in names if not re.search(rf"\b{name}\b", code)]


def test_every_message_of_the_page_about_trouble_is_in_the_source() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert len(messages) > 10
    # A message may be cut in the source where a line ends or a value stands in it.
    source = re.sub(
        r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in sorted((ROOT / "jserve").rglob("*.py")))
    )
    assert [message for message in messages if message not in source] == []


def test_the_site_builds_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "troubleshooting" / "index.html").exists()
