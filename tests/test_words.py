"""Words: one thing has one name, locals say what they hold, and docstrings begin with what a thing is or does.

docs/design.md has the glossary. `CLEAN` are the folders that this holds for.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLEAN = (
    *("benchmarks", "pallas_kernels", "tests/benchmarks"),
    *("jserve/engine", "jserve/layers", "jserve/models", "jserve/runtime", "jserve/weights"),
    *("jserve/checkpoint", "jserve/commands", "jserve/config", "jserve/quant"),
    *("jserve/text/output", "jserve/text/templates", "jserve/text/tokenizers", "jserve/text/tools"),
)
FILES = sorted(path for folder in CLEAN for path in (ROOT / folder).rglob("*.py"))
EMPTY_NAMES = {"found", "asked", "given", "told"}
"""They say how a value came, not what it is."""
REPLACED = re.compile(
    r"\b(baked?|give_back_passed|notable|read_?outs?|thin_\w+|THIN_\w+"
    r"|(?:comes?|came|brings?|brought|takes?|taken|sent|at) home)\b"
)
"""Words that the glossary has others for: precompiled, free_out_of_window, with_updates, prompt reads, small batch, ...
What "comes home" is read back."""
OF = re.compile(r"Of(?! course)\b")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_what_a_thing_is_or_does(path: Path) -> None:
    assert not [text.splitlines()[0] for text in docstrings(ast.parse(path.read_text())) if OF.match(text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_what_they_hold(path: Path) -> None:
    names = [(name, line) for name, line in bound_names(ast.parse(path.read_text())) if name in EMPTY_NAMES]
    assert not names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_that_the_glossary_replaced_are_gone(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert not [(number, line.strip()) for number, line in enumerate(lines, 1) if REPLACED.search(line)]


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Texts that stand alone as a statement: docstrings, and what is said of a field or a constant behind it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value.strip()


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every variable and parameter, with the line that binds it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def test_what_the_rules_are_about_is_seen() -> None:
    tree = ast.parse('"""Of one thing."""\ndef f(asked):\n    found = asked\n    """Of another."""\n')
    assert [bool(OF.match(text)) for text in docstrings(tree)] == [True, True]
    assert {name for name, _ in bound_names(tree)} == {"asked", "found"}
    assert REPLACED.search("the tokens come home")
    assert REPLACED.search("baked programs")
    assert not REPLACED.search("Path.home()")
